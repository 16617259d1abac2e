package apiserver

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/anypb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/announce"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/pki"
)

// framed puts a message into the envelope of gRPC.
func framed(message string) string {
	head := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message)))
	return string(head) + message
}

func plainly(message string) string { return message }

// Refusals that connect makes before any handler is reached look like ours, over
// each protocol and encoding.
func TestRefusalsBeforeTheHandlerGolden(t *testing.T) {
	small := func(c *Config) { c.Limits.MessageBytes = 200 }
	run(t, func(t *testing.T, w *world) {
		var told strings.Builder
		for _, how := range []struct {
			name, contentType string
			frame             func(string) string
		}{
			{"Connect, JSON", "application/json", plainly},
			{"Connect, binary", "application/proto", plainly},
			{"gRPC, JSON", "application/grpc+json", framed},
			{"gRPC, binary", "application/grpc", framed},
			{"gRPC-Web, JSON", "application/grpc-web+json", framed},
			{"gRPC-Web, binary", "application/grpc-web+proto", framed},
		} {
			unknown, malformed := "\x9a\x06\x02hi", "\xff\xff\xff"
			if strings.HasSuffix(how.contentType, "json") {
				unknown, malformed = `{"object":{"configMap":{"dta":{}}}}`, `{"object":`
			}
			bodies := []struct{ name, procedure, body string }{
				{"unknown field", "ObjectService/Create", how.frame(unknown)},
				{"malformed", "ObjectService/Create", how.frame(malformed)},
				{"malformed, of a read", "ObjectService/Get", how.frame(malformed)},
				{"too large", "ObjectService/Create", how.frame(strings.Repeat("x", 300))},
				{"no such method", "ObjectService/Destroy", how.frame("")},
			}
			if how.frame("") != "" {
				bodies = append(bodies, struct{ name, procedure, body string }{"cut off", "ObjectService/Create", how.frame("abc")[:6]},
					struct{ name, procedure, body string }{"empty", "ObjectService/Create", ""})
			}
			for _, b := range bodies {
				line := refusalOf(t, w, b.procedure, how.contentType, b.body)
				// protobuf puts one space or the other into its texts, a build at a time.
				line = strings.NewReplacer("\u00a0", " ", "%C2%A0", " ").Replace(line)
				fmt.Fprintf(&told, "%s: %s\n  %s\n", how.name, b.name, line)
			}
		}
		golden(t, "refusals.golden", told.String())
	}, small)
}

// refusalOf calls and reads code, message and detail off the wire, by hand.
func refusalOf(t *testing.T, w *world, procedure, contentType, body string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, base+"/balsa.v1."+procedure, strings.NewReader(body))
	must(t, err)
	req.Header.Set("Content-Type", contentType)
	res, err := w.admin().http.Do(req)
	must(t, err)
	text, err := io.ReadAll(res.Body)
	must(t, err)
	must(t, res.Body.Close())
	if !strings.Contains(contentType, "grpc") {
		return connectRefusal(t, res, text)
	}
	if len(text) > 0 || res.StatusCode != http.StatusOK {
		t.Errorf("%s %s: status %d with %q", procedure, contentType, res.StatusCode, text)
	}
	status, message, details := "", "", ""
	for _, h := range []http.Header{res.Header, res.Trailer} {
		status, message, details = status+h.Get("Grpc-Status"), message+h.Get("Grpc-Message"), details+h.Get("Grpc-Status-Details-Bin")
	}
	raw, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(details, "="))
	must(t, err)
	// google.rpc.Status: field 3 is the details.
	at := bytes.Index(raw, []byte("type.googleapis.com/balsa.v1.ErrorDetail"))
	if at < 0 {
		return fmt.Sprintf("%s %s, NO DETAIL", status, message)
	}
	value := raw[at+len("type.googleapis.com/balsa.v1.ErrorDetail"):]
	length, n := binary.Uvarint(value[1:])
	return fmt.Sprintf("%s %s\n  %s", status, message, detailLine(t, value[1+n:1+n+int(length)]))
}

func connectRefusal(t *testing.T, res *http.Response, text []byte) string {
	t.Helper()
	var wire struct {
		Code    string
		Message string
		Details []struct{ Type, Value string }
	}
	if err := json.Unmarshal(text, &wire); err != nil {
		return fmt.Sprintf("HTTP %d %q", res.StatusCode, text)
	}
	if len(wire.Details) != 1 || wire.Details[0].Type != "balsa.v1.ErrorDetail" {
		return fmt.Sprintf("HTTP %d %s %s, details %v", res.StatusCode, wire.Code, wire.Message, wire.Details)
	}
	raw, err := base64.RawStdEncoding.DecodeString(wire.Details[0].Value)
	must(t, err)
	return fmt.Sprintf("HTTP %d %s %s\n  %s", res.StatusCode, wire.Code, wire.Message, detailLine(t, raw))
}

func detailLine(t *testing.T, raw []byte) string {
	t.Helper()
	d := &balsav1.ErrorDetail{}
	must(t, (&anypb.Any{TypeUrl: "type.googleapis.com/balsa.v1.ErrorDetail", Value: raw}).UnmarshalTo(d))
	return fmt.Sprintf("%s, %s, hint: %s", d.GetReason(), strings.TrimPrefix(d.GetApplied().String(), "APPLIED_"), d.GetHint())
}

// Our client understands them, and compression changes nothing.
func TestRefusalsReachClients(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		for name, options := range map[string][]connect.ClientOption{
			"connect": nil, "grpc": {connect.WithGRPC()}, "grpcweb": {connect.WithGRPCWeb()}, "gzip": {connect.WithGRPC(), connect.WithSendGzip()},
		} {
			c := w.as(pki.RoleAdmin, "ana", options...)
			_, err := c.objects.Create(t.Context(), &balsav1.CreateRequest{Object: object.Wrap(newConfigMap(name, map[string]string{"k": incompressible(3000)}))})
			refused(t, err, connect.CodeResourceExhausted, "LimitReached")
			var failure *connect.Error
			if !errors.As(err, &failure) || detailOf(failure).GetApplied() != notApplied {
				t.Errorf("%s: %v", name, detailOf(failure))
			}
		}
	}, func(c *Config) { c.Limits.MessageBytes = 1000 })
}

// Every answer, a refusal too, tells who leads and where the servers are.
func TestAnnouncement(t *testing.T) {
	leader := "10.0.0.1:7443"
	run(t, func(t *testing.T, w *world) {
		headers := func(procedure, body string) http.Header {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, base+"/balsa.v1."+procedure, strings.NewReader(body))
			must(t, err)
			req.Header.Set("Content-Type", "application/json")
			res, err := w.admin().http.Do(req)
			must(t, err)
			must(t, res.Body.Close())
			return res.Header
		}
		for _, call := range [][2]string{
			{"ObjectService/List", `{"kind":"cm"}`}, {"ObjectService/Get", `{"kind":"cm","name":"none"}`},
			{"ObjectService/Get", `{"knd":"cm"}`}, {"ClusterService/GetVersion", `{}`},
		} {
			got := announce.From(headers(call[0], call[1]))
			if got.Leader != leader || !slices.Equal(got.Servers, []string{"10.0.0.1:7443"}) {
				t.Errorf("%v tells %v", call, got)
			}
		}
		leader = ""
		<-w.server.clock.NewTimer(announceEvery).C()
		if got := announce.From(headers("ClusterService/GetVersion", `{}`)); got.Leader != "" || len(got.Servers) != 1 {
			t.Errorf("without a leader %v is told", got)
		}
	}, func(c *Config) { c.Leader = func() string { return leader } })
	run(t, func(t *testing.T, w *world) { // a server that is not told who leads tells nobody
		h := http.Header{}
		w.server.announcer.put(h)
		if keys := slices.Collect(maps.Keys(h)); len(keys) > 0 {
			t.Errorf("headers %v", keys)
		}
	})
}

// incompressible is text that gzip cannot shorten below half.
func incompressible(n int) string {
	var b strings.Builder
	for x := uint64(88172645463325252); b.Len() < n; {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b.WriteByte("abcdefghijklmnopqrstuvwxyz0123456789"[x%36])
	}
	return b.String()
}
