package debian

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// Limits of a release file.
const (
	maxRelease    = 16 << 20
	maxSignatures = 16
)

// File is one index that a release file vouches for.
type File struct {
	Size   int64
	SHA256 string
}

// Release is a suite at one moment.
type Release struct {
	Suite, Codename, Version string
	Date                     time.Time
	ValidUntil               time.Time // zero where it does not expire
	Files                    map[string]File
	Signer                   string // key that signed it, 16 hex digits
}

// ReadKeyring reads OpenPGP keys, binary or armoured.
func ReadKeyring(b []byte) (openpgp.EntityList, error) {
	if bytes.HasPrefix(bytes.TrimSpace(b), []byte("-----BEGIN")) {
		return openpgp.ReadArmoredKeyRing(bytes.NewReader(b))
	}
	return openpgp.ReadKeyRing(bytes.NewReader(b))
}

// ReadInRelease checks the signature of an InRelease file against keys at the
// moment now, and reads what was signed. One good signature by a known key is
// enough, as gpgv and apt have it.
func ReadInRelease(b []byte, keys openpgp.EntityList, now time.Time) (*Release, error) {
	if len(b) > maxRelease {
		return nil, fmt.Errorf("larger than %d bytes", maxRelease)
	}
	block, rest, err := decode(b)
	if err != nil {
		return nil, err
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("something follows the signature")
	}
	signer, err := verify(block, keys, now)
	if err != nil {
		return nil, err
	}
	r, err := readRelease(block.Plaintext)
	if err != nil {
		return nil, err
	}
	if !r.ValidUntil.IsZero() && now.After(r.ValidUntil) {
		return nil, fmt.Errorf("expired on %s", r.ValidUntil.Format(time.RFC1123))
	}
	r.Signer = signer
	return r, nil
}

// decode splits a signed text. clearsign panics where nothing is between the
// head and the signature.
func decode(b []byte) (block *clearsign.Block, rest []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("not a signed text: %v", p)
		}
	}()
	if block, rest = clearsign.Decode(b); block == nil {
		return nil, nil, fmt.Errorf("not a signed text")
	}
	return block, rest, nil
}

// verify tries every signature packet alone: Debian signs with several keys,
// of which an older keyring knows some.
func verify(block *clearsign.Block, keys openpgp.EntityList, now time.Time) (string, error) {
	var raw bytes.Buffer
	if _, err := raw.ReadFrom(block.ArmoredSignature.Body); err != nil {
		return "", fmt.Errorf("signature: %w", err)
	}
	var last error
	packets := packet.NewReader(bytes.NewReader(raw.Bytes()))
	for range maxSignatures {
		p, err := packets.Next()
		if err != nil {
			break
		}
		sig, ok := p.(*packet.Signature)
		if !ok {
			continue
		}
		var one bytes.Buffer
		if err := sig.Serialize(&one); err != nil {
			return "", fmt.Errorf("signature: %w", err)
		}
		who, err := openpgp.CheckDetachedSignature(keys, bytes.NewReader(block.Bytes), &one, &packet.Config{Time: func() time.Time { return now }})
		if err == nil {
			return fmt.Sprintf("%X", who.PrimaryKey.KeyId), nil
		}
		last = err
	}
	if last == nil {
		last = fmt.Errorf("there is none")
	}
	return "", fmt.Errorf("no good signature by a known key: %w", last)
}

func readRelease(b []byte) (*Release, error) {
	var r *Release
	err := ReadStanzas(bytes.NewReader(b), []string{"Suite", "Codename", "Version", "Date", "Valid-Until", "SHA256"}, func(s Stanza) error {
		if r != nil {
			return fmt.Errorf("more than one paragraph")
		}
		r = &Release{Suite: s.Get("Suite"), Codename: s.Get("Codename"), Version: s.Get("Version"), Files: map[string]File{}}
		var err error
		if r.Date, err = date(s.Get("Date")); err != nil {
			return fmt.Errorf("field Date: %w", err)
		}
		if v := s.Get("Valid-Until"); v != "" {
			if r.ValidUntil, err = date(v); err != nil {
				return fmt.Errorf("field Valid-Until: %w", err)
			}
		}
		for _, line := range strings.Split(s.Get("SHA256"), "\n") {
			f := strings.Fields(line)
			if len(f) == 0 {
				continue
			}
			if len(f) != 3 {
				return fmt.Errorf("field SHA256: %q is not a digest, a size and a name", line)
			}
			size, err := strconv.ParseInt(f[1], 10, 64)
			if sum, bad := hex.DecodeString(f[0]); err != nil || size < 0 || bad != nil || len(sum) != 32 {
				return fmt.Errorf("field SHA256: %q is not a digest, a size and a name", line)
			}
			r.Files[f[2]] = File{Size: size, SHA256: f[0]}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if r == nil {
		return nil, fmt.Errorf("empty")
	}
	return r, nil
}

func date(s string) (time.Time, error) {
	// Debian writes "UTC", and one digit for early hours in old releases.
	for _, layout := range []string{time.RFC1123, "Mon, _2 Jan 2006 15:04:05 MST", "Mon, 2 Jan 2006 15:04:05 MST", time.RFC1123Z} {
		if t, err := time.Parse(layout, s); err == nil {
			return t.UTC(), nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is not a date", s)
}
