package docker

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/core/system"
)

// patient waits for a container that never ends.
type patient struct {
	Containers
	begun, gone chan struct{}
}

func (p *patient) Wait(ctx context.Context, _ string, _ container.WaitCondition) (<-chan container.WaitResult, error) {
	result := make(chan container.WaitResult)
	close(p.begun)
	go func() {
		<-ctx.Done()
		close(result)
		close(p.gone)
	}()
	return result, nil
}

type anySystem struct{ System }

func (anySystem) Version() system.Version { return system.Version{} }

func TestAWaitEndsWithItsClientWhateverBodyItSent(t *testing.T) {
	for _, body := range []string{"Content-Length: 2\r\n\r\n{}", "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"} {
		p := &patient{begun: make(chan struct{}), gone: make(chan struct{})}
		d, err := New(Options{Containers: p, System: anySystem{}})
		if err != nil {
			t.Fatal(err)
		}
		server := httptest.NewServer(d)
		conn, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintf(conn, "POST /containers/c/wait HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Type: application/json\r\n%s", body); err != nil {
			t.Fatal(err)
		}
		<-p.begun
		_ = conn.Close()
		select {
		case <-p.gone:
		case <-time.After(time.Minute):
			t.Fatalf("the wait goes on without a client after %q", body)
		}
		server.Close()
	}
}

func TestABodyWithoutEndIsRefused(t *testing.T) {
	d, err := New(Options{System: anySystem{}})
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	d.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/containers/c/wait", endless{}))
	if w.Code != http.StatusBadRequest {
		t.Errorf("answered %d: %s", w.Code, w.Body)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }
