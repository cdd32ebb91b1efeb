package docker

import (
	"net/http"
	"sync"
	"time"
)

// calmGap is the longest that a followed line may wait for others to be sent with.
const calmGap = 5 * time.Millisecond

// calm writes to a client that follows: what comes after a pause is sent at
// once, what comes in a rush is sent together.
type calm struct {
	mu      sync.Mutex
	w       http.ResponseWriter
	sent    time.Time
	waiting *time.Timer // nil: nothing is unsent
	over    bool
}

// Write takes a line; it is sent within calmGap.
func (c *calm) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, err := c.w.Write(p)
	if err != nil || c.waiting != nil {
		return n, err
	}
	if since := time.Since(c.sent); since < calmGap {
		c.waiting = time.AfterFunc(calmGap-since, c.late)
		return n, nil
	}
	c.flush()
	return n, nil
}

func (c *calm) late() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting = nil
	if !c.over {
		c.flush()
	}
}

// flush sends. mu is held.
func (c *calm) flush() {
	_ = http.NewResponseController(c.w).Flush() // a client that left ends the request
	c.sent = time.Now()
}

// close makes sure that the writer is not used after its request.
func (c *calm) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	if c.waiting != nil {
		c.waiting.Stop()
	}
}
