package etcdtest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
)

// gatewayIDs are what must differ between two clusters: also ids of leases that a server
// has chosen.
var gatewayIDs = regexp.MustCompile(`"(cluster_id|member_id|raft_term)":"\d+",?|"ID":"\d{12,}"`)

// gateway asks in JSON what etcdctl has asked by gRPC, and notes whole answers: status,
// type, what the gateway makes of metadata, and the body. A real etcd answers over plain
// HTTP/1.1 here, Balsa over both versions and TLS.
func gateway(c *ctl) {
	for i, h2 := range []bool{false, true} {
		key := fmt.Sprintf("%c", 'a'+i) // in base64 the second is "Yg=="
		k := map[string]string{"a": "YQ==", "b": "Yg=="}[key]
		for _, ask := range [][2]string{
			{"/v3/kv/put", `{"key":"` + k + `","value":"MQ=="}`},
			{"/v3/kv/put", `{"key":"` + k + `","value":"Mg==","prev_kv":true,"unknown":[{}]}`},
			{"/v3/kv/put", `{"key":"` + k + `","ignore_value":true,"value":"MQ=="}`},
			{"/v3/kv/put", `{"value":"MQ=="}`},
			{"/v3/kv/put", `{"key":`},
			{"/v3/kv/put", `{"key":"?"}`},
			{"/v3/kv/put", `{"key":1}`},
			{"/v3/kv/put", `[]`},
			{"/v3/kv/put", ``},
			{"/v3/kv/put", `{"key":"` + k + `","value":"` + strings.Repeat("AAAA", 600_000) + `"}`},
			{"/v3beta/kv/range", `{"key":"` + k + `"}`},
			{"/v3/kv/range", `{"key":"AA==","range_end":"AA==","limit":"2","keys_only":true,"sort_order":"DESCEND","sortTarget":"MOD"}`},
			{"/v3/kv/range", `{"key":"` + k + `","sort_order":7}`},
			{"/v3/kv/range", `{"key":"` + k + `","sort_order":"UPWARDS"}`},
			{"/v3/kv/range", `{"key":"` + k + `","revision":"900000"}`},
			{"/v3/kv/txn", `{"compare":[{"key":"` + k + `","target":"VERSION","result":"GREATER","version":"1"}],"success":[{"request_range":{"key":"` + k + `"}},{"request_put":{"key":"` + k + `","value":"Mw=="}}],"failure":[{"request_delete_range":{"key":"` + k + `"}}]}`},
			{"/v3/kv/txn", `{"success":[{"request_put":{"key":"` + k + `"}},{"request_put":{"key":"` + k + `"}}]}`},
			{"/v3/kv/txn", `{}`},
			{"/v3/kv/deleterange", `{"key":"` + k + `","prev_kv":true}`},
			{"/v3/kv/compaction", `{"revision":"1"}`},
			{"/v3/lease/grant", `{"ID":"7` + fmt.Sprint(i) + `","TTL":"600"}`},
			{"/v3/lease/grant", `{"ID":"7` + fmt.Sprint(i) + `","TTL":"600"}`},
			{"/v3/lease/grant", `{"TTL":"-1"}`},
			{"/v3/kv/put", `{"key":"` + k + `","lease":"7` + fmt.Sprint(i) + `"}`},
			{"/v3/kv/lease/timetolive", `{"ID":"7` + fmt.Sprint(i) + `","keys":true}`},
			{"/v3/lease/keepalive", `{"ID":"7` + fmt.Sprint(i) + `"}`},
			{"/v3/lock/lock", `{"name":"` + k + `","lease":"7` + fmt.Sprint(i) + `"}`},
			{"/v3/election/campaign", `{"name":"` + k + `","lease":"7` + fmt.Sprint(i) + `","value":"` + k + `"}`},
			{"/v3/election/leader", `{"name":"` + k + `"}`},
			{"/v3/lease/revoke", `{"ID":"7` + fmt.Sprint(i) + `"}`},
			{"/v3/election/leader", `{"name":"` + k + `"}`},
			{"/v3/maintenance/alarm", `{"action":"GET"}`},
			{"/v3/nothing", `{}`},
		} {
			// etcd's answer comes twice over one version, Balsa's over each.
			c.notef("%s %.150s\n%s", ask[0], ask[1], c.askJSON("POST", ask[0], ask[1], h2))
		}
		c.notef("by GET: %s", c.askJSON("GET", "/v3/kv/put", "", h2))
		c.notef("a watch:\n%s", c.watchJSON(`{"create_request":{"key":"`+k+`","start_revision":"1","prev_kv":true}}`, h2))
	}
}

// askJSON is one answer in words.
func (c *ctl) askJSON(method, path, body string, h2 bool) string {
	c.Helper()
	res := c.openJSON(method, path, body, h2)
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	c.must(err)
	header := []string{res.Header.Get("Content-Type")}
	for name, values := range res.Header {
		if strings.HasPrefix(name, "Grpc-") {
			header = append(header, name+"="+strings.Join(values, ","))
		}
	}
	slices.Sort(header)
	return fmt.Sprintf("%d %s\n%s", res.StatusCode, header, c.compact(string(text)))
}

// watchJSON is the first two lines of a watch, of which the second has all events.
func (c *ctl) watchJSON(body string, h2 bool) string {
	c.Helper()
	res := c.openJSON(http.MethodPost, "/v3/watch", body, h2)
	defer res.Body.Close()
	lines, told := bufio.NewReader(res.Body), ""
	for range 2 {
		line, err := lines.ReadString('\n')
		c.must(err)
		told += c.compact(line) + "\n"
	}
	return told
}

func (c *ctl) openJSON(method, path, body string, h2 bool) *http.Response {
	c.Helper()
	url, tr := "http://"+c.address+path, &http.Transport{DisableKeepAlives: true}
	if c.tls != nil {
		url = "https://" + c.address + path
		tr.TLSClientConfig, tr.ForceAttemptHTTP2 = c.tls.Clone(), h2
	}
	req, err := http.NewRequestWithContext(within(c), method, url, strings.NewReader(body))
	c.must(err)
	res, err := tr.RoundTrip(req)
	c.must(err)
	if h2 && c.tls != nil && res.ProtoMajor != 2 {
		c.Errorf("%s of %s comes over %s", path, c.name, res.Proto)
	}
	return res
}

// compact is JSON without the spaces that protobuf puts in by chance.
func (c *ctl) compact(text string) string {
	var told []string
	for line := range strings.Lines(text) {
		line = strings.ReplaceAll(line, "\u00a0", " ") // of protobuf's errors
		if raw := json.RawMessage(line); json.Valid(raw) {
			short, err := json.Marshal(raw)
			c.must(err)
			line = string(short)
		}
		told = append(told, gatewayIDs.ReplaceAllString(strings.TrimSpace(line), ""))
	}
	return strings.Join(told, "\n")
}
