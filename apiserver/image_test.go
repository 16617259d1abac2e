package apiserver

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/gen/balsainternal/v1/internalv1connect"
	"github.com/balsa-run/balsa/pki"
)

// testImage is an image of one layer: its blobs by digest, and its manifest.
type testImage struct {
	blobs    map[string]string
	manifest []byte
}

func newTestImage(t *testing.T, layer string) testImage {
	t.Helper()
	config := `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["` + digestOf(layer) + `"]}}`
	describe := func(kind, content string) map[string]any {
		return map[string]any{"mediaType": kind, "digest": digestOf(content), "size": len(content)}
	}
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": describe("application/vnd.oci.image.config.v1+json", config),
		"layers": []any{describe("application/vnd.oci.image.layer.v1.tar", layer)},
	})
	must(t, err)
	return testImage{blobs: map[string]string{digestOf(config): config, digestOf(layer): layer}, manifest: manifest}
}

func (i testImage) digests() []string {
	var out []string
	for digest := range i.blobs {
		out = append(out, digest)
	}
	return out
}

func pushBlob(t *testing.T, c *clients, digest string, size int64, parts ...string) error {
	t.Helper()
	stream, err := c.images.PushBlob(t.Context())
	must(t, err)
	first := &balsav1.PushBlobRequest{Digest: digest, Size: size}
	for _, part := range parts {
		first.Data = []byte(part)
		if err := stream.Send(first); err != nil {
			break // CloseAndReceive says why
		}
		first = &balsav1.PushBlobRequest{}
	}
	_, err = stream.CloseAndReceive()
	return err
}

func (i testImage) push(t *testing.T, c *clients, name string) (*balsav1.PushImageResponse, error) {
	t.Helper()
	missing, err := c.images.MissingBlobs(t.Context(), &balsav1.MissingBlobsRequest{Digests: i.digests()})
	must(t, err)
	for _, digest := range missing.GetDigests() {
		content := i.blobs[digest]
		must(t, pushBlob(t, c, digest, int64(len(content)), content[:len(content)/2], content[len(content)/2:]))
	}
	return c.images.PushImage(t.Context(), &balsav1.PushImageRequest{
		Name: name, Manifest: i.manifest, MediaType: "application/vnd.oci.image.manifest.v1+json",
	})
}

func TestPush(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		other := newWorld(t)
		w.peers.others = map[string]internalv1connect.PeerServiceClient{"m2": other.as(pki.RoleServer, "s1").peer}
		image := newTestImage(t, strings.Repeat("layer ", 100))
		res, err := image.push(t, w.admin(), "docker.io/library/app:1")
		must(t, err)
		if got := res.GetImage(); got.GetName() != "app:1" || got.GetDigest() != digestOf(string(image.manifest)) || !got.GetKept() {
			t.Fatalf("pushed %v", got)
		}
		for digest := range image.blobs {
			if _, ok, _ := other.blobs.Stat(digest); !ok {
				t.Errorf("the other server lacks %s", digest)
			}
		}
		// The second time nothing travels; also what only another server has counts.
		must(t, w.blobs.Remove(image.digests()[0]))
		missing, err := w.admin().images.MissingBlobs(t.Context(), &balsav1.MissingBlobsRequest{Digests: append(image.digests(), digestOf("new"))})
		must(t, err)
		if diff := cmp.Diff([]string{digestOf("new")}, missing.GetDigests()); diff != "" {
			t.Errorf("missing (-want +got):\n%s", diff)
		}
		if _, err := image.push(t, w.admin(), "app:2"); err != nil {
			t.Errorf("with a blob on another server: %v", err)
		}
		got, err := w.agent("n1").nodes.GetImage(t.Context(), &balsav1.GetImageRequest{Name: "app:2"})
		must(t, err)
		if len(got.GetBlobs()) != 3 {
			t.Errorf("blobs: %v", got.GetBlobs())
		}
	})
}

func TestPushRefusals(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		image := newTestImage(t, "layer")
		pushImage := func(name string, manifest []byte) error {
			_, err := w.admin().images.PushImage(t.Context(), &balsav1.PushImageRequest{Name: name, Manifest: manifest})
			return err
		}
		refused(t, pushImage("app:1", image.manifest), connect.CodeNotFound, "BlobNotFound")
		for digest, content := range image.blobs {
			must(t, pushBlob(t, w.admin(), digest, int64(len(content)), content))
		}
		refused(t, pushImage("App", image.manifest), connect.CodeInvalidArgument, "Invalid")
		refused(t, pushImage("app:1", []byte("{")), connect.CodeInvalidArgument, "Invalid")
		refused(t, pushImage("app:1", []byte(`{"schemaVersion":2,"manifests":[]}`)), connect.CodeInvalidArgument, "Invalid")
		lie := strings.Replace(string(image.manifest), `"size":5`, `"size":6`, 1)
		refused(t, pushImage("app:1", []byte(lie)), connect.CodeInvalidArgument, "Invalid")
		refused(t, pushBlob(t, w.admin(), digestOf("a"), 1, "b"), connect.CodeInvalidArgument, "BadDigest")
		refused(t, pushBlob(t, w.admin(), digestOf("abc"), 2, "abc"), connect.CodeResourceExhausted, "LimitReached")
		refused(t, pushBlob(t, w.admin(), digestOf("abc"), 4, "abc"), connect.CodeInvalidArgument, "Invalid")
		refused(t, pushBlob(t, w.admin(), digestOf("abc"), 5000, "abc"), connect.CodeResourceExhausted, "LimitReached")
		refused(t, pushBlob(t, w.admin(), "md5:1", 1, "a"), connect.CodeInvalidArgument, "BadDigest")
		refused(t, pushBlob(t, w.admin(), "", 0), connect.CodeInvalidArgument, "Invalid")
		_, err := w.admin().images.MissingBlobs(t.Context(), &balsav1.MissingBlobsRequest{Digests: make([]string, maxPushDigests+1)})
		refused(t, err, connect.CodeResourceExhausted, "LimitReached")
		_, err = w.admin().images.MissingBlobs(t.Context(), &balsav1.MissingBlobsRequest{Digests: []string{"../x"}})
		refused(t, err, connect.CodeInvalidArgument, "BadDigest")
		list, err := w.reader().images.ListImages(t.Context(), &balsav1.ListImagesRequest{})
		must(t, err)
		if len(list.GetImages()) > 0 {
			t.Errorf("listed: %v", list)
		}
	}, func(c *Config) { c.Limits.ArchiveBytes = 4000 })
}

// haveImage makes a node say that it has an image.
func (w *world) haveImage(name, digest string, images ...string) {
	w.t.Helper()
	node := newNode(name)
	node.Status.DaemonEndpoints = &balsav1.NodeDaemonEndpoints{KubeletEndpoint: &balsav1.DaemonEndpoint{Port: 7450}}
	_, err := w.agent(name).nodes.Register(w.t.Context(), &balsav1.RegisterRequest{Node: node})
	must(w.t, err)
	live := proto.CloneOf(get[*balsav1.Node](w.t, w.admin(), "", name))
	live.Status.Conditions = []*balsav1.Condition{{Type: "Ready", Status: "True"}}
	live.Status.Images = []*balsav1.ContainerImage{{Names: append(images, "x@"+digest), SizeBytes: 100}}
	w.direct(live)
}

func TestListImagesWithNodes(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		res, err := newTestImage(t, "layer").push(t, w.admin(), "app:1")
		must(t, err)
		digest := res.GetImage().GetDigest()
		w.haveImage("n1", digest, "app:1")
		w.haveImage("n2", digest, "app:1", "other:1")
		w.haveImage("n3", digestOf("old"), "app:1")
		list, err := w.reader().images.ListImages(t.Context(), &balsav1.ListImagesRequest{})
		must(t, err)
		got := map[string]bool{}
		for _, i := range list.GetImages() {
			kept := map[bool]string{true: "kept", false: "not kept"}[i.GetKept()]
			which := map[string]string{digest: "new", digestOf("old"): "old"}[i.GetDigest()]
			got[i.GetName()+" "+which+" "+kept+" "+strings.Join(i.GetNodes(), ",")] = true
		}
		want := map[string]bool{"app:1 new kept n1,n2": true, "app:1 old not kept n3": true, "other:1 new not kept n2": true}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("listed (-want +got):\n%s", diff)
		}
		// Peers are the ready nodes that have exactly this image, without who asks.
		answer, err := w.agent("n2").nodes.GetImage(t.Context(), &balsav1.GetImageRequest{Name: "app:1"})
		must(t, err)
		if diff := cmp.Diff([]string{"10.0.0.9:7450"}, answer.GetPeers()); diff != "" {
			t.Errorf("peers (-want +got):\n%s", diff)
		}
	})
}

// prunedNode is a node that prunes two images.
type prunedNode struct {
	internalv1connect.UnimplementedAgentServiceHandler
	dryRun bool
	down   error
}

func (n *prunedNode) Agent(context.Context, *balsav1.Node) (internalv1connect.AgentServiceClient, error) {
	if n.down != nil {
		return nil, n.down
	}
	mux := http.NewServeMux()
	mux.Handle(internalv1connect.NewAgentServiceHandler(n))
	return internalv1connect.NewAgentServiceClient(&http.Client{Transport: inProcess{mux}}, base), nil
}

func (n *prunedNode) PruneImages(_ context.Context, req *internalv1.PruneImagesRequest) (*internalv1.PruneImagesResponse, error) {
	n.dryRun = req.GetDryRun()
	return &internalv1.PruneImagesResponse{Images: []string{"gone:1", "gone:2"}, Bytes: 7}, nil
}

func TestPruneImages(t *testing.T) {
	nodes := &prunedNode{}
	run(t, func(t *testing.T, w *world) {
		for _, name := range []string{"used:1", "template:1", "unused:1", "unused:2"} {
			_, err := newTestImage(t, "layer of "+name).push(t, w.admin(), name)
			must(t, err)
		}
		_, err := newTestImage(t, "layer of used:1").push(t, w.admin(), "alias:1")
		must(t, err)
		p := newPod("p", nil)
		p.Spec.Containers[0].Image = "docker.io/library/used:1"
		create(t, w.admin(), p)
		d := newDeployment("d", 1)
		d.Spec.Template.Spec.Containers[0].Image = "template:1"
		create(t, w.admin(), d)
		w.register("n1")

		prune := func(req *balsav1.PruneImagesRequest) []string {
			t.Helper()
			res, err := w.admin().images.PruneImages(t.Context(), req)
			must(t, err)
			var names []string
			for _, i := range res.GetImages() {
				names = append(names, strings.TrimSpace(i.GetNode()+" "+i.GetName()))
			}
			return append(names, res.GetUnavailable()...)
		}
		all := []string{"alias:1", "unused:1", "unused:2", "n1 gone:1", "n1 gone:2"}
		if diff := cmp.Diff([]string{"n1 gone:1", "n1 gone:2"}, prune(&balsav1.PruneImagesRequest{MinAgeSeconds: 60})); diff != "" {
			t.Errorf("too young (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(all, prune(&balsav1.PruneImagesRequest{DryRun: true})); diff != "" || !nodes.dryRun {
			t.Errorf("dry run (-want +got):\n%s", diff)
		}
		before, err := w.blobs.List()
		must(t, err)
		if diff := cmp.Diff(all, prune(&balsav1.PruneImagesRequest{})); diff != "" || nodes.dryRun {
			t.Errorf("pruned (-want +got):\n%s", diff)
		}
		list, err := w.reader().images.ListImages(t.Context(), &balsav1.ListImagesRequest{})
		must(t, err)
		if len(list.GetImages()) != 2 {
			t.Errorf("left: %v", list)
		}
		// Blobs wait, since they could belong to a push on its way; then those that
		// no image names go, and only those. The files have the machine's time, the
		// bubble's is long past: the age must be negative to be reached.
		if now, err := w.blobs.List(); err != nil || len(now) != len(before) {
			t.Errorf("%d blobs of %d are left, %v", len(now), len(before), err)
		}
		_, err = w.server.SweepBlobs(t.Context(), -100*365*24*time.Hour)
		must(t, err)
		if left, err := w.blobs.List(); err != nil || len(left) != 6 {
			t.Errorf("%d blobs are left, %v, want those of two images", len(left), err)
		}
		nodes.down = errors.New("no route")
		if got := prune(&balsav1.PruneImagesRequest{}); len(got) != 1 || !strings.HasPrefix(got[0], "n1: ") {
			t.Errorf("with a node that is down: %q", got)
		}
		_, err = w.admin().images.PruneImages(t.Context(), &balsav1.PruneImagesRequest{MinAgeSeconds: -1})
		refused(t, err, connect.CodeInvalidArgument, "Invalid")
	}, func(c *Config) { c.Nodes = nodes })
}
