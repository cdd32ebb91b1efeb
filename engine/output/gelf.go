package output

import (
	"compress/flate"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/Graylog2/go-gelf/gelf"

	"github.com/berth-project/berth/core/container"
)

func gelfOptions() []string {
	return []string{"gelf-address", "gelf-compression-level", "gelf-compression-type", "gelf-tcp-max-reconnect", "gelf-tcp-reconnect-delay"}
}

func checkGelf(o map[string]string) error {
	network, _, err := gelfAddress(o["gelf-address"])
	if err != nil {
		return err
	}
	for key, value := range o {
		unknown := fmt.Errorf("unknown value %q for log opt %q for gelf log driver", value, key)
		n, notNumber := strconv.Atoi(value)
		switch key {
		case "gelf-compression-level":
			if network != "udp" {
				return errors.New("compression is only supported on UDP")
			}
			if notNumber != nil || n < flate.DefaultCompression || n > flate.BestCompression {
				return unknown
			}
		case "gelf-compression-type":
			if network != "udp" {
				return errors.New("compression is only supported on UDP")
			}
			if value != "gzip" && value != "zlib" && value != "none" {
				return unknown
			}
		case "gelf-tcp-max-reconnect", "gelf-tcp-reconnect-delay":
			if network != "tcp" {
				return fmt.Errorf("%q is only valid for TCP", key)
			}
			if notNumber != nil || n < 0 {
				return fmt.Errorf("%q must be a positive integer", key)
			}
		}
	}
	return nil
}

func gelfAddress(address string) (network, place string, err error) {
	if address == "" {
		return "", "", errors.New("gelf-address is a required parameter")
	}
	u, err := transport("gelf-address", address, "tcp", "udp", "unix", "unixgram", "http", "https")
	if err != nil {
		return "", "", err
	}
	if u.Scheme != "udp" && u.Scheme != "tcp" {
		return "", "", errors.New("gelf: endpoint needs to be TCP or UDP")
	}
	if _, _, err = net.SplitHostPort(u.Host); err != nil {
		return "", "", fmt.Errorf("gelf: please provide gelf-address as proto://host:port")
	}
	return u.Scheme, u.Host, nil
}

type gelfWriter interface {
	WriteMessage(m *gelf.Message) error
	Close() error
}

type gelfSender struct {
	w     gelfWriter
	host  string
	extra json.RawMessage
}

func newGelf(c container.Container, cfg container.LogConfig) (sender, error) {
	network, address, err := gelfAddress(cfg.Options["gelf-address"])
	if err != nil {
		return nil, err
	}
	s := &gelfSender{}
	if s.host, err = os.Hostname(); err != nil {
		return nil, errors.New("gelf: cannot access hostname to set source field")
	}
	tag, err := remoteTag(c, cfg)
	if err != nil {
		return nil, err
	}
	info := infoOf(c)
	extra := map[string]any{
		"_container_id": string(c.ID), "_container_name": c.Name, "_image_id": c.ImageID, "_image_name": c.Spec.Image,
		"_command": info.Command, "_tag": tag, "_created": c.Created,
	}
	for k, v := range attributes(cfg, c, func(k string) string {
		if strings.HasPrefix(k, "_") {
			return k
		}
		return "_" + k
	}) {
		extra[k] = v
	}
	if s.extra, err = json.Marshal(extra); err != nil {
		return nil, err
	}
	if network == "tcp" {
		s.w, err = gelfTCP(address, cfg.Options)
	} else {
		s.w, err = gelfUDP(address, cfg.Options)
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

func gelfTCP(address string, o map[string]string) (gelfWriter, error) {
	w, err := gelf.NewTCPWriter(address)
	if err != nil {
		return nil, fmt.Errorf("gelf: cannot connect to GELF endpoint: %s %w", address, err)
	}
	if n, err := strconv.Atoi(o["gelf-tcp-max-reconnect"]); err == nil {
		w.MaxReconnect = n
	}
	if n, err := strconv.Atoi(o["gelf-tcp-reconnect-delay"]); err == nil {
		w.ReconnectDelay = time.Duration(n)
	}
	return w, nil
}

func gelfUDP(address string, o map[string]string) (gelfWriter, error) {
	w, err := gelf.NewUDPWriter(address)
	if err != nil {
		return nil, fmt.Errorf("gelf: cannot connect to GELF endpoint: %s %w", address, err)
	}
	switch o["gelf-compression-type"] {
	case "zlib":
		w.CompressionType = gelf.CompressZlib
	case "none":
		w.CompressionType = gelf.CompressNone
	}
	if n, err := strconv.Atoi(o["gelf-compression-level"]); err == nil {
		w.CompressionLevel = n
	}
	return w, nil
}

func (s *gelfSender) send(m message) error {
	if len(m.text) == 0 {
		return nil // GELF has no empty messages
	}
	level := int32(gelf.LOG_INFO)
	if m.stderr {
		level = gelf.LOG_ERR
	}
	err := s.w.WriteMessage(&gelf.Message{
		Version: "1.1", Host: s.host, Short: string(m.text), TimeUnix: float64(m.time.UnixMilli()) / 1000, Level: level, RawExtra: s.extra,
	})
	if err != nil {
		return fmt.Errorf("gelf: cannot send GELF message: %w", err)
	}
	return nil
}

func (s *gelfSender) close() error { return s.w.Close() }
