package apiserver

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/store"
)

// maxPeersTold of the nodes that have an image.
const maxPeersTold = 8

// ListImages tells which images the servers keep, and which others nodes have
// told of: each tells of its largest ones.
func (i imageService) ListImages(ctx context.Context, _ *balsav1.ListImagesRequest) (*balsav1.ListImagesResponse, error) {
	view, err := i.view(ctx, store.SpaceObjects, nil)
	if err != nil {
		return nil, err
	}
	records, err := imageRecords(view)
	if err != nil {
		return nil, err
	}
	byKey := map[[2]string]*balsav1.Image{}
	for _, r := range records {
		byKey[[2]string{r.GetName(), r.GetDigest()}] = imageOf(r)
	}
	for _, n := range nodesOf(view) {
		for _, have := range n.GetStatus().GetImages() {
			addNodeImage(byKey, n.GetMetadata().GetName(), have)
		}
	}
	res := &balsav1.ListImagesResponse{}
	for _, image := range byKey {
		slices.Sort(image.Nodes)
		image.Nodes = slices.Compact(image.Nodes)
		res.Images = append(res.Images, image)
	}
	slices.SortFunc(res.Images, func(a, b *balsav1.Image) int {
		return cmp.Or(cmp.Compare(a.GetName(), b.GetName()), cmp.Compare(a.GetDigest(), b.GetDigest()))
	})
	return res, nil
}

func imageOf(r *internalv1.ImageRecord) *balsav1.Image {
	return &balsav1.Image{Name: r.GetName(), Digest: r.GetDigest(), Size: r.GetSize(), Imported: r.GetImported(), Kept: true}
}

// addNodeImage enters an image of a node under each of its names.
func addNodeImage(byKey map[[2]string]*balsav1.Image, node string, have *balsav1.ContainerImage) {
	names, digest := splitNames(have)
	for _, name := range names {
		key := [2]string{name, digest}
		if byKey[key] == nil {
			byKey[key] = &balsav1.Image{Name: name, Digest: digest, Size: have.GetSizeBytes()}
		}
		byKey[key].Nodes = append(byKey[key].Nodes, node)
	}
}

// splitNames takes apart what a node calls an image: "repo:tag" and
// "repo@digest". One that has a digest alone goes by that name.
func splitNames(image *balsav1.ContainerImage) (names []string, digest string) {
	var byDigest []string
	for _, name := range image.GetNames() {
		if _, d, ok := strings.Cut(name, "@"); ok {
			digest = d
			byDigest = append(byDigest, name)
		} else {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		names = byDigest
	}
	return names, digest
}

func imageRecords(view store.View) ([]*internalv1.ImageRecord, error) {
	var records []*internalv1.ImageRecord
	for kv := range view.Prefix(prefixImages) {
		r := &internalv1.ImageRecord{}
		if err := proto.Unmarshal(kv.Value, r); err != nil {
			return nil, fmt.Errorf("decode %q: %w", kv.Key, err)
		}
		records = append(records, r)
	}
	return records, nil
}

func nodesOf(view store.View) []*balsav1.Node {
	kind, _ := object.KindByName("Node")
	var nodes []*balsav1.Node
	for kv := range view.Prefix(object.Prefix(kind, "")) {
		if n, ok := kv.Object.(*balsav1.Node); ok {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// imagePeers are agents of ready nodes that have an image, in no order: whoever
// asks spreads the load.
func imagePeers(view store.View, digest, asking string) []string {
	var peers []string
	for _, n := range nodesOf(view) {
		address := agentEndpoint(n)
		if n.GetMetadata().GetName() == asking || address == "" || !nodeReady(n) {
			continue
		}
		if slices.ContainsFunc(n.GetStatus().GetImages(), func(i *balsav1.ContainerImage) bool {
			_, have := splitNames(i)
			return have == digest
		}) {
			peers = append(peers, address)
		}
	}
	rand.Shuffle(len(peers), func(a, b int) { peers[a], peers[b] = peers[b], peers[a] })
	return peers[:min(len(peers), maxPeersTold)]
}

func nodeReady(n *balsav1.Node) bool {
	return slices.ContainsFunc(n.GetStatus().GetConditions(), func(c *balsav1.Condition) bool {
		return c.GetType() == "Ready" && c.GetStatus() == "True"
	})
}

func agentEndpoint(n *balsav1.Node) string {
	port := n.GetStatus().GetDaemonEndpoints().GetKubeletEndpoint().GetPort()
	for _, a := range n.GetStatus().GetAddresses() {
		if a.GetType() == "InternalIP" && port != 0 {
			return net.JoinHostPort(a.GetAddress(), strconv.Itoa(int(port)))
		}
	}
	return ""
}
