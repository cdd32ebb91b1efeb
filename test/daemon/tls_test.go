package daemon

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth/test/kit"
)

// authority signs certificates into a folder.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, dir, name string) *authority {
	t.Helper()
	a := &authority{dir: dir}
	a.cert, a.key = a.sign(t, name, true)
	return a
}

// sign writes NAME.pem and NAME-key.pem.
func (a *authority) sign(t *testing.T, name string, ca bool) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	c := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, IsCA: ca, BasicConstraintsValid: true,
	}
	parent, signer := a.cert, a.key
	if ca {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{name + ".pem": {Type: "CERTIFICATE", Bytes: der}, name + "-key.pem": {Type: "EC PRIVATE KEY", Bytes: private}} {
		write(t, filepath.Join(a.dir, file), string(pem.EncodeToMemory(block)))
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return out, key
}

func TestOnlyClientsWithACertificateAreServedOverTLS(t *testing.T) {
	kit.Need(t, "docker")
	dir := t.TempDir()
	ca := newAuthority(t, dir, "ca")
	ca.sign(t, "server", false)
	ca.sign(t, "client", false)
	other := newAuthority(t, dir, "other")
	other.sign(t, "stranger", false)
	path := func(name string) string { return filepath.Join(dir, name) }
	address := freeAddress(t)
	e := start(t, "tls", nil, "-H", "tcp://"+address, "--tlsverify", "--tlscacert", path("ca.pem"), "--tlscert", path("server.pem"), "--tlskey", path("server-key.pem"))
	docker := func(args ...string) (string, error) {
		cmd := exec.Command("docker", append(args, "version", "--format", "{{.Server.Platform.Name}}")...)
		cmd.Env = append(os.Environ(), "DOCKER_HOST=tcp://"+address, "HOME="+dir)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := docker("--tlsverify", "--tlscacert", path("ca.pem"), "--tlscert", path("client.pem"), "--tlskey", path("client-key.pem")); err != nil || strings.TrimSpace(out) != "Berth" {
		t.Fatal(err, out, e.Log())
	}
	for name, args := range map[string][]string{
		"a stranger":                    {"--tlsverify", "--tlscacert", path("ca.pem"), "--tlscert", path("stranger.pem"), "--tlskey", path("stranger-key.pem")},
		"a client of another authority": {"--tlsverify", "--tlscacert", path("other.pem"), "--tlscert", path("client.pem"), "--tlskey", path("client-key.pem")},
		"one without TLS":               nil,
	} {
		if out, err := docker(args...); err == nil {
			t.Errorf("%s was served: %s", name, out)
		}
	}
	// Without a certificate the handshake ends, whatever is asked for.
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	if resp, err := client.Get("https://" + address + "/_ping"); err == nil {
		_ = resp.Body.Close()
		t.Errorf("one without a certificate was served: %s", resp.Status)
	}
	// Old versions of TLS are not spoken.
	if c, err := tls.Dial("tcp", address, &tls.Config{RootCAs: pool, MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}); err == nil {
		_ = c.Close()
		t.Error("TLS 1.1 is spoken")
	}
	if err := e.Ping(context.Background()); err != nil {
		t.Error(err)
	}
}
