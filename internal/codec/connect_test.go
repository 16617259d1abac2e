package codec_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/gen/balsa/v1/balsav1connect"
	"github.com/balsa-run/balsa/internal/codec"
)

type objects struct {
	balsav1connect.UnimplementedObjectServiceHandler
}

func (objects) Get(_ context.Context, r *balsav1.GetRequest) (*balsav1.GetResponse, error) {
	return &balsav1.GetResponse{Object: &balsav1.Object{Object: &balsav1.Object_Pod{Pod: &balsav1.Pod{
		Metadata: &balsav1.ObjectMeta{Name: r.GetName(), Generation: 3},
	}}}}, nil
}

func handler() http.Handler {
	var options []connect.HandlerOption
	for _, c := range codec.Strict(known) {
		options = append(options, connect.WithCodec(c))
	}
	_, h := balsav1connect.NewObjectServiceHandler(objects{}, options...)
	return h
}

func call(t *testing.T, method, contentType, target, body string) (int, string) {
	t.Helper()
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	w := httptest.NewRecorder()
	handler().ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

const good = `{"object":{"pod":{"metadata":{"name":"a","generation":3}}}}`

// connect knows JSON by two names; unknown fields must be refused under both.
func TestServersRefuseUnknownFields(t *testing.T) {
	for _, contentType := range []string{"application/json", "application/json; charset=utf-8"} {
		code, body := call(t, http.MethodPost, contentType, balsav1connect.ObjectServiceGetProcedure, `{"name":"a"}`)
		if code != http.StatusOK || body != good {
			t.Errorf("%s: got %d %s, want 200 %s", contentType, code, body, good)
		}
		code, body = call(t, http.MethodPost, contentType, balsav1connect.ObjectServiceGetProcedure, `{"nam":"a"}`)
		if code != http.StatusBadRequest || !strings.Contains(body, "nam: unknown field, did you mean name?") {
			t.Errorf("%s: got %d %s, want 400 that names the field", contentType, code, body)
		}
	}
}

func TestCallsByGet(t *testing.T) {
	target := balsav1connect.ObjectServiceGetProcedure + "?connect=v1&encoding=json&message=" + url.QueryEscape(`{"name":"a"}`)
	if code, body := call(t, http.MethodGet, "", target, ""); code != http.StatusOK || body != good {
		t.Errorf("got %d %s, want 200 %s", code, body, good)
	}
}

func TestClientAndServer(t *testing.T) {
	server := httptest.NewServer(handler())
	t.Cleanup(server.Close)
	for _, c := range codec.Lenient() {
		client := balsav1connect.NewObjectServiceClient(server.Client(), server.URL, connect.WithCodec(c), connect.WithHTTPGet())
		got, err := client.Get(t.Context(), &balsav1.GetRequest{Name: "b"})
		if err != nil || got.GetObject().GetPod().GetMetadata().GetName() != "b" {
			t.Errorf("%s: got %v, %v", c.Name(), got, err)
		}
	}
}

// Health and reflection keep protobuf's own JSON.
func TestOtherMessages(t *testing.T) {
	want := &grpc_health_v1.HealthCheckResponse{Status: grpc_health_v1.HealthCheckResponse_SERVING}
	for _, c := range append(codec.Strict(nil), codec.Lenient()...) {
		for _, marshal := range []func(any) ([]byte, error){c.Marshal, c.MarshalStable} {
			data, err := marshal(want)
			if err != nil {
				t.Fatal(err)
			}
			if !c.IsBinary() && string(data) != `{"status":"SERVING"}` {
				t.Errorf("%s: got %s", c.Name(), data)
			}
			var got grpc_health_v1.HealthCheckResponse
			if err := c.Unmarshal(data, &got); err != nil || !proto.Equal(want, &got) {
				t.Errorf("%s: got %v, %v", c.Name(), &got, err)
			}
		}
	}
}

func TestCodecsRefuse(t *testing.T) {
	for _, c := range append(codec.Strict(nil), codec.Lenient()...) {
		if _, err := c.Marshal("text"); err == nil {
			t.Errorf("%s: marshalled a string", c.Name())
		}
		if _, err := c.MarshalStable("text"); err == nil {
			t.Errorf("%s: marshalled a string", c.Name())
		}
		if err := c.Unmarshal(nil, "text"); err == nil {
			t.Errorf("%s: unmarshalled into a string", c.Name())
		}
		if err := c.Unmarshal([]byte{0xff}, &balsav1.GetRequest{}); err == nil {
			t.Errorf("%s: read rubbish", c.Name())
		}
		if err := c.Unmarshal(nil, &balsav1.GetRequest{}); (err == nil) != c.IsBinary() {
			t.Errorf("%s: an empty body gave %v", c.Name(), err)
		}
	}
}
