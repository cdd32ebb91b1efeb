import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.util.Map;
import java.util.TreeMap;

/**
 * Makes a key store of certificates (JKS) depend on its certificates alone: sorted by name, and without the moment
 * at which each was put in. It runs while the image is made.
 */
class Undated {
    private static final int MAGIC = 0xfeedfeed, VERSION = 2, CERTIFICATE = 2;

    public static void main(String[] args) throws Exception {
        Path store = Path.of(args[0]);
        Map<String, byte[]> certificates = read(new DataInputStream(new ByteArrayInputStream(Files.readAllBytes(store))));
        ByteArrayOutputStream body = new ByteArrayOutputStream();
        DataOutputStream out = new DataOutputStream(body);
        out.writeInt(MAGIC);
        out.writeInt(VERSION);
        out.writeInt(certificates.size());
        for (Map.Entry<String, byte[]> e : certificates.entrySet()) {
            out.writeInt(CERTIFICATE);
            out.writeUTF(e.getKey());
            out.writeLong(0);
            out.writeUTF("X.509");
            out.writeInt(e.getValue().length);
            out.write(e.getValue());
        }
        // The format's check: over the password, these two words, and the body.
        MessageDigest check = MessageDigest.getInstance("SHA-1");
        check.update("changeit".getBytes(StandardCharsets.UTF_16BE));
        check.update("Mighty Aphrodite".getBytes(StandardCharsets.UTF_8));
        out.write(check.digest(body.toByteArray()));
        Files.write(store, body.toByteArray());
    }

    private static Map<String, byte[]> read(DataInputStream in) throws IOException {
        if (in.readInt() != MAGIC || in.readInt() != VERSION) {
            throw new IOException("not a key store of Java's own format");
        }
        Map<String, byte[]> certificates = new TreeMap<>();
        for (int n = in.readInt(); n > 0; n--) {
            if (in.readInt() != CERTIFICATE) {
                throw new IOException("an entry is no certificate");
            }
            String name = in.readUTF();
            in.readLong();
            in.readUTF();
            certificates.put(name, in.readNBytes(in.readInt()));
        }
        return certificates;
    }
}
