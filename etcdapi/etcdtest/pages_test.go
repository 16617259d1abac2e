package etcdtest

import (
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
)

// pages asks for what etcd has beside gRPC on its clients' port. A real etcd answers
// over plain HTTP/1.1 here, Balsa over both versions and TLS.
func pages(c *ctl) {
	for _, page := range [][2]string{
		{"GET", "/health"}, {"GET", "/health?serializable=true"}, {"GET", "/health?exclude=NOSPACE&exclude=CORRUPT"}, {"POST", "/health"}, {"HEAD", "/health"},
		{"GET", "/livez"}, {"GET", "/livez?verbose"}, {"GET", "/livez/serializable_read?verbose"}, {"GET", "/livez?exclude=serializable_read&verbose"}, {"PUT", "/livez"},
		{"GET", "/readyz"}, {"GET", "/readyz?verbose"}, {"GET", "/readyz?exclude=nothing"}, {"GET", "/readyz?verbose&exclude=linearizable_read&exclude=non_learner"},
		{"GET", "/readyz/data_corruption?verbose"}, {"GET", "/readyz/serializable_read"}, {"GET", "/readyz/linearizable_read?verbose"}, {"GET", "/readyz/non_learner"},
		{"DELETE", "/readyz"}, {"DELETE", "/version"},
	} {
		first := c.page(page[0], page[1], false)
		if second := c.page(page[0], page[1], true); second != first {
			c.Errorf("%s on %s: %s over one version of HTTP, %s over the other", page, c.name, first, second)
		}
		c.notef("%s %s", page, first)
	}
	var version map[string]string
	_, body, _ := c.get("GET", "/version", false)
	c.must(json.Unmarshal([]byte(body), &version))
	names := []string{}
	for name, value := range version {
		names = append(names, name)
		if !strings.HasPrefix(value, "3.") {
			c.Errorf("/version of %s says %s", c.name, body)
		}
	}
	slices.Sort(names)
	c.notef("/version has %s", names)
	code, body, kind := c.get("GET", "/metrics", true)
	c.notef("/metrics %d %s", code, strings.SplitN(kind, ";", 2)[0])
	if !strings.Contains(body, "\nprocess_resident_memory_bytes ") {
		c.Errorf("/metrics of %s does not say what memory it has", c.name)
	}
}

// page is an answer in words. etcd has its checks in the order of a map.
func (c *ctl) page(method, path string, h2 bool) string {
	c.Helper()
	code, body, kind := c.get(method, path, h2)
	lines := strings.SplitAfter(body, "\n")
	slices.Sort(lines)
	return strings.Join(append([]string{http.StatusText(code), kind}, lines...), " ")
}

func (c *ctl) get(method, path string, h2 bool) (code int, body, kind string) {
	c.Helper()
	url, tr := "http://"+c.address+path, &http.Transport{}
	if c.tls != nil {
		url = "https://" + c.address + path
		tr = &http.Transport{TLSClientConfig: c.tls.Clone(), ForceAttemptHTTP2: h2}
	}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(within(c), method, url, nil)
	c.must(err)
	res, err := tr.RoundTrip(req)
	c.must(err)
	defer res.Body.Close()
	if h2 && c.tls != nil && res.ProtoMajor != 2 {
		c.Errorf("%s %s of %s comes over %s", method, path, c.name, res.Proto)
	}
	text, err := io.ReadAll(res.Body)
	c.must(err)
	return res.StatusCode, string(text), res.Header.Get("Content-Type") + res.Header.Get("Allow")
}
