package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// Limits of a load.
const (
	requestTimeout = 5 * time.Second
	maxErrorsKept  = 10
	maxBody        = 64 << 10
)

// HTTPReport is what became of the requests to a service.
type HTTPReport struct {
	Requests int            `json:"requests"`
	Failed   int            `json:"failed"`
	Errors   []string       `json:"errors,omitempty"` // the first few
	Answers  map[string]int `json:"answers"`          // by the status line
	// The longest time between two answers, in milliseconds.
	LongestGapMS int64 `json:"longestGapMS"`
}

// HTTP asks for url every interval until ctx ends, each time over a new
// connection, since a service is chosen per connection. A request that fails is
// not repeated: it counts.
func HTTP(ctx context.Context, url string, interval time.Duration) HTTPReport {
	report := HTTPReport{Answers: map[string]int{}}
	client := &http.Client{
		Timeout: requestTimeout,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext:       (&net.Dialer{Timeout: requestTimeout}).DialContext,
		},
	}
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return report
		case <-ticker.C:
		}
		// A request that has begun is finished, so that the end of the load does
		// not count as a failure.
		status, err := get(context.WithoutCancel(ctx), client, url)
		report.count(status, err, &last)
	}
}

func (r *HTTPReport) count(status string, err error, last *time.Time) {
	r.Requests++
	if err != nil {
		r.Failed++
		if len(r.Errors) < maxErrorsKept {
			r.Errors = append(r.Errors, time.Now().Format(time.StampMilli)+" "+err.Error())
		}
		return
	}
	r.Answers[status]++
	now := time.Now()
	r.LongestGapMS = max(r.LongestGapMS, now.Sub(*last).Milliseconds())
	*last = now
}

func get(ctx context.Context, client *http.Client, url string) (status string, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, response.Body.Close()) }()
	if _, err := io.Copy(io.Discard, io.LimitReader(response.Body, maxBody)); err != nil {
		return "", fmt.Errorf("read the answer: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("answered %s", response.Status)
	}
	return response.Status, nil
}
