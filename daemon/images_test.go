package daemon

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"connectrpc.com/connect"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/gen/balsa/v1/balsav1connect"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/gen/balsainternal/v1/internalv1connect"

	"github.com/balsa-run/balsa/node"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/balsa-run/balsa/node/image"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/pki"
)

func digestOf(content []byte) string {
	sum := sha256.Sum256(content)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// storeWithImage is a node that has an image of one layer.
func storeWithImage(t *testing.T) (store *image.Store, manifest string, layer []byte) {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	content := strings.Repeat("content ", 100_000)
	if err := w.WriteHeader(&tar.Header{Name: "f", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content))}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	layer = b.Bytes()
	config, err := json.Marshal(map[string]any{"architecture": "amd64", "os": "linux", "rootfs": map[string]any{"type": "layers", "diff_ids": []string{digestOf(layer)}}})
	if err != nil {
		t.Fatal(err)
	}
	describe := func(content []byte) map[string]any {
		return map[string]any{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digestOf(content), "size": len(content)}
	}
	document, err := json.Marshal(map[string]any{"schemaVersion": 2, "config": describe(config), "layers": []any{describe(layer)}})
	if err != nil {
		t.Fatal(err)
	}
	store = newImageStore(t)
	for _, content := range [][]byte{layer, config, document} {
		if _, err := store.Put(t.Context(), bytes.NewReader(content)); err != nil {
			t.Fatal(err)
		}
	}
	return store, digestOf(document), layer
}

func newImageStore(t *testing.T) *image.Store {
	t.Helper()
	store, err := image.Open(image.Options{Dir: t.TempDir(), Limits: image.Limits{MinFreeBytes: 1}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	return store
}

// agentPort serves an agent to callers of one role.
func agentPort(t *testing.T, role pki.Role, store *image.Store) *httptest.Server {
	t.Helper()
	agent := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "agent") })
	handler := withBlobs(withMetrics(agent, prometheus.NewRegistry()), store)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if role != "" {
			r = r.WithContext(pki.WithIdentity(r.Context(), pki.Identity{Role: role, Name: "x"}))
		}
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	return server
}

func fetchBlob(t *testing.T, server *httptest.Server, digest string, offset int64) ([]byte, error) {
	t.Helper()
	source := &peerSource{address: server.URL, client: internalv1connect.NewBlobServiceClient(server.Client(), server.URL)}
	r, err := source.Blob(t.Context(), digest, offset)
	if err != nil {
		return nil, err
	}
	content, err := io.ReadAll(r)
	return content, errors.Join(err, r.Close())
}

func TestBlobsAreForServersAndAgents(t *testing.T) {
	store, _, layer := storeWithImage(t)
	for role, want := range map[pki.Role]struct {
		blob  bool
		agent int
	}{
		pki.RoleServer: {true, http.StatusOK}, pki.RoleAgent: {true, http.StatusForbidden},
		pki.RoleAdmin: {false, http.StatusForbidden}, pki.RoleReader: {false, http.StatusForbidden}, "": {false, http.StatusUnauthorized},
	} {
		server := agentPort(t, role, store)
		content, err := fetchBlob(t, server, digestOf(layer), 10)
		if want.blob && (err != nil || !bytes.Equal(content, layer[10:])) || !want.blob && err == nil {
			t.Errorf("%q reads %d bytes, %v", role, len(content), err)
		}
		res, err := http.Get(server.URL + "/balsa.internal.v1.AgentService/Logs")
		if err != nil || res.StatusCode != want.agent {
			t.Errorf("%q asks the agent: %v, %v", role, res, err)
		}
		_ = res.Body.Close()
	}
}

func TestFetchBlobRefusals(t *testing.T) {
	store, _, layer := storeWithImage(t)
	server := agentPort(t, pki.RoleAgent, store)
	for digest, code := range map[string]connect.Code{
		digestOf([]byte("absent")): connect.CodeNotFound, "sha256:../../../etc/passwd": connect.CodeInvalidArgument, "": connect.CodeInvalidArgument,
	} {
		if _, err := fetchBlob(t, server, digest, 0); connect.CodeOf(err) != code {
			t.Errorf("%q: %v, want %v", digest, err, code)
		}
	}
	if _, err := fetchBlob(t, server, digestOf(layer), -1); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("offset -1: %v", err)
	}
	if content, err := fetchBlob(t, server, digestOf(layer), int64(len(layer))+5); err != nil || len(content) > 0 {
		t.Errorf("beyond the end: %d bytes, %v", len(content), err)
	}
	b := &blobService{store: store, places: make(chan struct{})}
	if err := b.FetchBlob(t.Context(), &internalv1.FetchBlobRequest{Digest: digestOf(layer)}, nil); connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("without a place: %v", err)
	}
}

// serversWith is the API of servers that keep one image, and count what is read.
type serversWith struct {
	balsav1connect.UnimplementedNodeServiceHandler
	store  *image.Store
	digest string
	peers  []string
	reads  int
}

func (s *serversWith) GetImage(_ context.Context, req *balsav1.GetImageRequest) (*balsav1.GetImageResponse, error) {
	if req.GetName() != "app:v1" {
		return nil, connect.NewError(connect.CodeNotFound, errors.New("no such image"))
	}
	return &balsav1.GetImageResponse{Name: req.GetName(), Digest: s.digest, Peers: s.peers}, nil
}

func (s *serversWith) GetBlob(_ context.Context, req *balsav1.GetBlobRequest, stream *connect.ServerStream[balsav1.GetBlobResponse]) error {
	s.reads++
	r, err := s.store.OpenBlob(req.GetDigest(), req.GetOffset())
	if err != nil {
		return connect.NewError(connect.CodeNotFound, err)
	}
	content, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	return stream.Send(&balsav1.GetBlobResponse{Data: content})
}

func TestPullAsksOtherNodesFirst(t *testing.T) {
	has, digest, layer := storeWithImage(t)
	servers := &serversWith{store: has, digest: digest}
	mux := http.NewServeMux()
	mux.Handle(balsav1connect.NewNodeServiceHandler(servers))
	api := httptest.NewServer(mux)
	t.Cleanup(api.Close)
	honest := agentPort(t, pki.RoleAgent, has)
	lying := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path, service := internalv1connect.NewBlobServiceHandler(liar{size: len(layer)})
		if !strings.HasPrefix(r.URL.Path, path) {
			http.NotFound(w, r)
			return
		}
		service.ServeHTTP(w, r)
	}))
	t.Cleanup(lying.Close)
	for title, c := range map[string]struct {
		peers []string
		reads bool
	}{
		"one that has it": {[]string{honest.URL}, false}, "one that lies, one that has it": {[]string{lying.URL, honest.URL}, false},
		"one that lies": {[]string{lying.URL}, true}, "one that is gone": {[]string{"http://127.0.0.1:1"}, true}, "none": {nil, true},
	} {
		t.Run(title, func(t *testing.T) {
			servers.peers, servers.reads = c.peers, 0
			i := &images{
				store: newImageStore(t), api: balsav1connect.NewNodeServiceClient(api.Client(), api.URL),
				peers: func(address string) internalv1connect.BlobServiceClient {
					return internalv1connect.NewBlobServiceClient(http.DefaultClient, address)
				},
			}
			got, err := i.Pull(t.Context(), node.ImagePull{Name: "app:v1", Policy: object.PullAlways}, func(node.ImageProgress) {})
			if err != nil || got.Image.Digest != digest || !got.Transferred || got.SizeBytes == 0 {
				t.Fatalf("pulled %+v, %v", got, err)
			}
			if (servers.reads > 0) != c.reads {
				t.Errorf("%d blobs were read from the servers", servers.reads)
			}
			if status, err := i.Status(); err != nil || len(status) != 1 || status[0].GetNames()[0] != "app:v1" {
				t.Errorf("status %v, %v", status, err)
			}
			if _, err := i.Local(t.Context(), "other:v1"); !errors.Is(err, node.ErrImageNotPresent) {
				t.Errorf("an image that is not there: %v", err)
			}
			if _, err := i.Pull(t.Context(), node.ImagePull{Name: "No Name", Policy: object.PullAlways}, nil); !errors.Is(err, node.ErrImageName) {
				t.Errorf("a name that is none: %v", err)
			}
		})
	}
}

// liar sends other bytes, as many as it is asked for.
type liar struct{ size int }

func (l liar) FetchBlob(_ context.Context, _ *internalv1.FetchBlobRequest, stream *connect.ServerStream[internalv1.FetchBlobResponse]) error {
	return stream.Send(&internalv1.FetchBlobResponse{Data: make([]byte, l.size)})
}
