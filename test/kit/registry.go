package kit

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// Registry is Debian's docker-registry on this machine.
type Registry struct {
	Dir            string // its configuration and, below data, what is pushed
	User, Password string // who alone may enter; "" lets everybody
}

// registryLimit is how long it may take until it answers.
const registryLimit = 20 * time.Second

// Start starts it on a free port of the loopback. Stop ends it; its folder stays.
func (r Registry) Start() (address string, stop func(), err error) {
	program, err := exec.LookPath("docker-registry")
	if err != nil {
		return "", nil, fmt.Errorf("%w: docker-registry is not installed", ErrMissing)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	address = l.Addr().String()
	if err := l.Close(); err != nil {
		return "", nil, err
	}
	var config bytes.Buffer
	fmt.Fprintf(&config, "version: 0.1\nlog: {level: error}\nstorage:\n  filesystem: {rootdirectory: %s}\n  delete: {enabled: true}\nhttp: {addr: %q}\n", filepath.Join(r.Dir, "data"), address)
	if r.User != "" {
		hash, err := bcrypt.GenerateFromPassword([]byte(r.Password), bcrypt.MinCost)
		if err != nil {
			return "", nil, err
		}
		users := filepath.Join(r.Dir, "users")
		if err := os.WriteFile(users, fmt.Appendf(nil, "%s:%s\n", r.User, hash), 0o600); err != nil {
			return "", nil, err
		}
		fmt.Fprintf(&config, "auth: {htpasswd: {realm: test, path: %s}}\n", users)
	}
	file := filepath.Join(r.Dir, "config.yml")
	if err := os.WriteFile(file, config.Bytes(), 0o644); err != nil {
		return "", nil, err
	}
	var said bytes.Buffer
	cmd := exec.Command(program, "serve", file)
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	stop = func() {
		_ = cmd.Process.Kill()
		<-ended
	}
	err = Until(registryLimit, func() error {
		c, err := net.Dial("tcp", address)
		if err == nil {
			err = c.Close()
		}
		return err
	})
	if err != nil {
		stop()
		return "", nil, fmt.Errorf("docker-registry: %w\n%s", err, said.Bytes())
	}
	return address, stop, nil
}
