package output

import (
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
)

const packedExt = ".gz"

// pack compresses a rotated log. Both names never hold the same lines: the
// packed file gets its name when it is whole, and a daemon killed between
// that and the removal leaves the plain file, which readers prefer.
func pack(path string) error {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	temp := path + ".tmp"
	out, err := os.OpenFile(temp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	z, err := gzip.NewWriterLevel(out, gzip.BestSpeed)
	if err == nil {
		_, err = io.Copy(z, in)
		err = errors.Join(err, z.Close())
	}
	if err = errors.Join(err, out.Close()); err == nil {
		err = os.Rename(temp, path+packedExt)
	}
	if err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	return os.Remove(path)
}

// unpack gives a packed log as a file without a name.
func unpack(path string) (*os.File, error) {
	in, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	z, err := gzip.NewReader(in)
	if err != nil {
		return nil, err
	}
	out, err := os.CreateTemp(filepath.Dir(path), ".unpacked-")
	if err != nil {
		return nil, err
	}
	err = os.Remove(out.Name())
	if err == nil {
		_, err = io.Copy(out, z) // as long as what was packed here
	}
	if err != nil {
		return nil, errors.Join(err, out.Close())
	}
	return out, nil
}
