// Command demo shows Berth at work: it starts the daemon where none answers,
// runs the image welcome with a published port and fetches its page.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// limit is how long the daemon, and then the page, may take to answer.
const limit = 30 * time.Second

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	bin, err := filepath.Abs("bin")
	if err != nil {
		return err
	}
	berth := func(args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, filepath.Join(bin, "berth"), args...)
		var errs bytes.Buffer
		cmd.Stderr = &errs
		out, err := cmd.Output()
		if err != nil {
			return "", fmt.Errorf("berth %s: %w: %s", strings.Join(args, " "), err, errs.String())
		}
		return strings.TrimSpace(string(out)), nil
	}
	if _, err := berth("version"); err != nil {
		if err := start(bin); err != nil {
			return err
		}
		fmt.Println("started berthd; it goes on after this (log: /run/berth/berthd.log)")
	}
	if err := wait(func() error { _, err := berth("version"); return err }); err != nil {
		return err
	}
	_, _ = berth("rm", "-f", "welcome") // of an earlier demo
	port, err := freePort()
	if err != nil {
		return err
	}
	if _, err := berth("run", "-d", "--name", "welcome", "-p", port+":8080", "welcome"); err != nil {
		return err
	}
	url := "http://localhost:" + port + "/"
	var page string
	if err := wait(func() error { page, err = fetch(ctx, url); return err }); err != nil {
		return err
	}
	if !strings.Contains(page, "Welcome to Berth") {
		return fmt.Errorf("%s served something else: %.100q", url, page)
	}
	fmt.Printf("\nA container serves %s\n\nTry next:\n  sudo bin/berth ps\n  sudo bin/berth logs welcome\n  sudo bin/berth exec welcome /welcome --version\n\nStop it all:  sudo bin/berth rm -f welcome; sudo kill $(cat /run/berth/berthd.pid)\n", url)
	return nil
}

// start runs the daemon in a session of its own.
func start(bin string) error {
	if err := os.MkdirAll("/run/berth", 0o711); err != nil {
		return fmt.Errorf("%w (the demo needs root: sudo make demo)", err)
	}
	log, err := os.OpenFile("/run/berth/berthd.log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(bin, "berthd"))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd.Start()
}

// wait tries until it goes well or the limit is reached.
func wait(try func() error) error {
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			return fmt.Errorf("gave up after %s: %w", limit, err)
		}
	}
}

func freePort() (string, error) {
	for _, address := range []string{":8080", ":0"} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			continue
		}
		_, port, err := net.SplitHostPort(l.Addr().String())
		return port, errors.Join(err, l.Close())
	}
	return "", errors.New("no port is free")
}

func fetch(ctx context.Context, url string) (string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return string(b), err
}
