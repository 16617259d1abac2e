package ociarchive

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// The two documents that an archive begins with. Newer archives have both; the
// OCI index is preferred, since its manifests are the images' own.
const (
	indexFile  = "index.json"
	dockerFile = "manifest.json"
)

// Annotations of an index that name an image: containerd's and Docker's full
// name, and the specification's, which is often the tag alone.
const (
	containerdName = "io.containerd.image.name"
	refName        = "org.opencontainers.image.ref.name"
)

func (in *importer) images() ([]Image, error) {
	if b, ok := in.find(indexFile); ok {
		return in.fromIndex(b)
	}
	if b, ok := in.find(dockerFile); ok {
		return in.fromDocker(b)
	}
	return nil, fmt.Errorf("the archive has neither %s nor %s: make it with \"docker save\" or as an OCI archive: %w", indexFile, dockerFile, ErrInvalid)
}

// fromIndex reads an OCI layout.
func (in *importer) fromIndex(b Blob) ([]Image, error) {
	index, err := in.index(b)
	if err != nil {
		return nil, err
	}
	byDigest := map[string]*Image{}
	for _, d := range index.Manifests {
		image, err := in.resolve(d, 1)
		if err != nil {
			return nil, err
		}
		if image == nil {
			continue
		}
		have, ok := byDigest[image.Manifest.Digest]
		if !ok {
			have, byDigest[image.Manifest.Digest] = image, image
		}
		have.Names = append(have.Names, descriptorNames(d)...)
	}
	if len(byDigest) > MaxImages {
		return nil, fmt.Errorf("the archive has %d images, at most %d are allowed: %w", len(byDigest), MaxImages, ErrInvalid)
	}
	var images []Image
	for _, digest := range slices.Sorted(maps.Keys(byDigest)) {
		images = append(images, *byDigest[digest])
	}
	in.addDockerTags(images)
	return images, nil
}

func (in *importer) index(b Blob) (*v1.IndexManifest, error) {
	content, err := in.document(b)
	if err != nil {
		return nil, err
	}
	index, err := v1.ParseIndexManifest(bytes.NewReader(content))
	if err != nil {
		return nil, fmt.Errorf("index %s: %w: %w", b.Digest, err, ErrInvalid)
	}
	if len(index.Manifests) > MaxIndexEntries {
		return nil, fmt.Errorf("index %s has %d entries, at most %d are allowed: %w", b.Digest, len(index.Manifests), MaxIndexEntries, ErrInvalid)
	}
	return index, nil
}

// resolve finds the image manifest of a descriptor; through nested indexes it
// takes the one for the wanted architecture. Nil: it describes no image.
func (in *importer) resolve(d v1.Descriptor, depth int) (*Image, error) {
	if depth > MaxIndexDepth {
		return nil, fmt.Errorf("indexes are nested more than %d deep: %w", MaxIndexDepth, ErrInvalid)
	}
	b, err := in.described(d)
	if err != nil {
		return nil, err
	}
	switch {
	case d.MediaType.IsIndex():
		return in.fromNested(b, depth)
	case d.MediaType.IsImage():
		return in.image(b)
	}
	return nil, nil
}

func (in *importer) fromNested(b Blob, depth int) (*Image, error) {
	index, err := in.index(b)
	if err != nil {
		return nil, err
	}
	var offered []string
	for _, d := range index.Manifests {
		if d.Platform == nil || d.Platform.OS == "unknown" {
			continue // an attestation
		}
		if d.Platform.OS == "linux" && d.Platform.Architecture == in.opt.Architecture {
			return in.resolve(d, depth+1)
		}
		offered = append(offered, d.Platform.String())
	}
	return nil, fmt.Errorf("index %s offers %v, want linux/%s: %w", b.Digest, offered, in.opt.Architecture, ErrInvalid)
}

// described checks that a blob is there and as big as it is said to be.
func (in *importer) described(d v1.Descriptor) (Blob, error) {
	digest := d.Digest.String()
	if err := CheckDigest(digest); err != nil {
		return Blob{}, err
	}
	b, ok := in.find("blobs/sha256/" + d.Digest.Hex)
	if !ok {
		return Blob{}, fmt.Errorf("blob %s is not in the archive: %w", digest, ErrInvalid)
	}
	if b.Size != d.Size {
		return Blob{}, fmt.Errorf("blob %s has %d bytes, its descriptor says %d: %w", digest, b.Size, d.Size, ErrInvalid)
	}
	b.MediaType = string(d.MediaType)
	return b, nil
}

// image checks a manifest and everything that it refers to.
func (in *importer) image(b Blob) (*Image, error) {
	content, err := in.document(b)
	if err != nil {
		return nil, err
	}
	manifest, err := ParseManifest(content)
	if err != nil {
		return nil, err
	}
	image := &Image{Manifest: b}
	if image.Config, err = in.described(manifest.Config); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	for _, layer := range manifest.Layers {
		b, err := in.described(layer)
		if err != nil {
			return nil, fmt.Errorf("layer: %w", err)
		}
		image.Layers = append(image.Layers, b)
	}
	if content, err = in.document(image.Config); err != nil {
		return nil, err
	}
	_, err = ParseConfig(content, manifest)
	return image, err
}

// ParseManifest reads an image manifest and checks what it says by itself.
func ParseManifest(content []byte) (*v1.Manifest, error) {
	m, err := v1.ParseManifest(bytes.NewReader(content))
	if err != nil {
		return nil, fmt.Errorf("manifest: %w: %w", err, ErrInvalid)
	}
	if len(m.Layers) == 0 || len(m.Layers) > MaxLayers {
		return nil, fmt.Errorf("manifest: %d layers, want 1 to %d: %w", len(m.Layers), MaxLayers, ErrInvalid)
	}
	for _, d := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		if err := CheckDigest(d.Digest.String()); err != nil {
			return nil, fmt.Errorf("manifest: %w", err)
		}
		if d.Size < 0 || d.Size > MaxArchiveBytes {
			return nil, fmt.Errorf("manifest: blob %s of %d bytes: %w", d.Digest, d.Size, ErrInvalid)
		}
	}
	return m, nil
}

// ParseConfig reads an image's configuration and checks it against the manifest.
func ParseConfig(content []byte, manifest *v1.Manifest) (*v1.ConfigFile, error) {
	config, err := v1.ParseConfigFile(bytes.NewReader(content))
	if err != nil {
		return nil, fmt.Errorf("image configuration: %w: %w", err, ErrInvalid)
	}
	if config.OS != "linux" {
		return nil, fmt.Errorf("image configuration: os %q, want linux: %w", config.OS, ErrInvalid)
	}
	if have, want := len(config.RootFS.DiffIDs), len(manifest.Layers); have != want {
		return nil, fmt.Errorf("image configuration: %d diff ids for %d layers: %w", have, want, ErrInvalid)
	}
	for _, id := range config.RootFS.DiffIDs {
		if err := CheckDigest(id.String()); err != nil {
			return nil, fmt.Errorf("image configuration: %w", err)
		}
	}
	return config, checkStrings(config)
}

// checkStrings refuses what no process can be started with.
func checkStrings(config *v1.ConfigFile) error {
	c := config.Config
	all := slices.Concat(c.Env, c.Entrypoint, c.Cmd, []string{c.WorkingDir, c.User, c.StopSignal})
	if len(all) > MaxConfigStrings {
		return fmt.Errorf("image configuration: %d variables and arguments, at most %d are allowed: %w", len(all), MaxConfigStrings, ErrInvalid)
	}
	for _, s := range all {
		if strings.ContainsRune(s, 0) {
			return fmt.Errorf("image configuration: %.100q has a NUL: %w", s, ErrInvalid)
		}
	}
	return nil
}

// dockerImage is one element of manifest.json.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func (in *importer) dockerImages(b Blob) ([]dockerImage, error) {
	content, err := in.document(b)
	if err != nil {
		return nil, err
	}
	var list []dockerImage
	if err := json.Unmarshal(content, &list); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", dockerFile, err, ErrInvalid)
	}
	if len(list) > MaxImages {
		return nil, fmt.Errorf("%s: %d images, at most %d are allowed: %w", dockerFile, len(list), MaxImages, ErrInvalid)
	}
	return list, nil
}

// fromDocker reads an archive that has no manifests and writes them: the same
// archive always gives the same digests.
func (in *importer) fromDocker(b Blob) ([]Image, error) {
	list, err := in.dockerImages(b)
	if err != nil {
		return nil, err
	}
	var images []Image
	for _, d := range list {
		content, err := in.writeManifest(d)
		if err != nil {
			return nil, err
		}
		blob, err := in.blobs.Put(in.ctx, bytes.NewReader(content))
		if err != nil {
			return nil, fmt.Errorf("store the manifest of %v: %w", d.RepoTags, err)
		}
		blob.MediaType = string(types.OCIManifestSchema1)
		in.entries["blobs/sha256/"+strings.TrimPrefix(blob.Digest, "sha256:")] = entry{blob: blob}
		image, err := in.image(blob)
		if err != nil {
			return nil, fmt.Errorf("image %v: %w", d.RepoTags, err)
		}
		image.Names = d.RepoTags
		images = append(images, *image)
	}
	return images, nil
}

func (in *importer) writeManifest(d dockerImage) ([]byte, error) {
	config, err := in.descriptor(d.Config, types.OCIConfigJSON)
	if err != nil {
		return nil, err
	}
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: config}
	for _, path := range d.Layers {
		layer, err := in.descriptor(path, types.OCIUncompressedLayer)
		if err != nil {
			return nil, err
		}
		m.Layers = append(m.Layers, layer)
	}
	content, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode the manifest of %v: %w", d.RepoTags, err)
	}
	return content, nil
}

// descriptor describes a file of the archive and enters it under its digest.
func (in *importer) descriptor(path string, kind types.MediaType) (v1.Descriptor, error) {
	b, ok := in.find(path)
	if !ok {
		return v1.Descriptor{}, fmt.Errorf("%s names %q, which is not in the archive: %w", dockerFile, path, ErrInvalid)
	}
	hash, err := v1.NewHash(b.Digest)
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("%q: %w", path, err)
	}
	in.entries["blobs/sha256/"+hash.Hex] = entry{blob: b}
	return v1.Descriptor{MediaType: kind, Digest: hash, Size: b.Size}, nil
}

func descriptorNames(d v1.Descriptor) []string {
	if full := d.Annotations[containerdName]; full != "" {
		return []string{full}
	}
	// A tag alone names nothing.
	if ref := d.Annotations[refName]; strings.ContainsAny(ref, ":/") {
		return []string{ref}
	}
	return nil
}

// addDockerTags takes names from manifest.json where the index has none: both
// list an image by its configuration.
func (in *importer) addDockerTags(images []Image) {
	b, ok := in.find(dockerFile)
	if !ok {
		return
	}
	list, err := in.dockerImages(b)
	if err != nil {
		return // the index alone is enough
	}
	for _, d := range list {
		config, ok := in.find(d.Config)
		if !ok {
			continue
		}
		for i := range images {
			if images[i].Config.Digest == config.Digest && len(images[i].Names) == 0 {
				images[i].Names = d.RepoTags
			}
		}
	}
}

// named normalises the names, or gives the one that was asked for.
func (in *importer) named(images []Image) ([]Image, error) {
	if len(images) == 0 {
		return nil, fmt.Errorf("the archive has no image: %w", ErrInvalid)
	}
	if in.opt.Name != "" {
		if len(images) > 1 {
			return nil, fmt.Errorf("name %q was given for an archive of %d images: import it without a name, or one image at a time: %w",
				in.opt.Name, len(images), ErrInvalid)
		}
		images[0].Names = []string{in.opt.Name}
	}
	for i := range images {
		if len(images[i].Names) == 0 {
			return nil, fmt.Errorf("image %s has no name in the archive: give one: %w", images[i].Manifest.Digest, ErrInvalid)
		}
		var names []string
		for _, name := range images[i].Names {
			normal, err := NormalizeName(name)
			if err != nil {
				return nil, err
			}
			names = append(names, normal)
		}
		slices.Sort(names)
		images[i].Names = slices.Compact(names)
	}
	return images, nil
}

// ChooseManifest looks at a manifest or an index that stands by itself. Of an
// index it returns the digest of the manifest, or inner index, for linux on an
// architecture; of a manifest it returns "". What could be read as both is
// refused: two readers must not see two images.
func ChooseManifest(content []byte, architecture string) (string, error) {
	var kind struct {
		SchemaVersion int64           `json:"schemaVersion"`
		MediaType     types.MediaType `json:"mediaType"`
		Manifests     json.RawMessage `json:"manifests"`
		Config        json.RawMessage `json:"config"`
		Layers        json.RawMessage `json:"layers"`
	}
	if err := json.Unmarshal(content, &kind); err != nil {
		return "", fmt.Errorf("%w: %w", err, ErrInvalid)
	}
	if kind.SchemaVersion != 2 {
		return "", fmt.Errorf("schemaVersion: found %d, want 2; images of 2016 and before have to be pushed anew with a tool of today: %w", kind.SchemaVersion, ErrInvalid)
	}
	isIndex, isImage := kind.Manifests != nil, kind.Config != nil || kind.Layers != nil
	switch {
	case isIndex && isImage:
		return "", fmt.Errorf("it has manifests and layers, as an index and an image: %w", ErrInvalid)
	case isIndex && kind.MediaType.IsImage(), isImage && kind.MediaType.IsIndex():
		return "", fmt.Errorf("mediaType %q does not fit its content: %w", kind.MediaType, ErrInvalid)
	case isIndex:
		return chooseFromIndex(content, architecture)
	case isImage:
		return "", nil
	}
	return "", fmt.Errorf("it is neither an image manifest nor an index: %w", ErrInvalid)
}

func chooseFromIndex(content []byte, architecture string) (string, error) {
	index, err := v1.ParseIndexManifest(bytes.NewReader(content))
	if err != nil {
		return "", fmt.Errorf("index: %w: %w", err, ErrInvalid)
	}
	if len(index.Manifests) > MaxIndexEntries {
		return "", fmt.Errorf("index: %d entries, at most %d are allowed: %w", len(index.Manifests), MaxIndexEntries, ErrInvalid)
	}
	var offered []string
	for _, d := range index.Manifests {
		if d.Platform != nil && d.Platform.OS == "unknown" {
			continue // an attestation
		}
		// An entry without a platform is taken where it is the only one.
		fits := d.Platform == nil && len(index.Manifests) == 1 ||
			d.Platform != nil && d.Platform.OS == "linux" && d.Platform.Architecture == architecture
		if fits && (d.MediaType.IsImage() || d.MediaType.IsIndex()) {
			return d.Digest.String(), CheckDigest(d.Digest.String())
		}
		if d.Platform != nil {
			offered = append(offered, d.Platform.String())
		}
	}
	return "", fmt.Errorf("it offers %.200q, want linux/%s: %w", strings.Join(offered, ", "), architecture, ErrInvalid)
}

// LayoutImage is an image, or an index of one, that an OCI layout lists.
type LayoutImage struct {
	Digest string
	// Names as the layout has them; there may be none.
	Names []string
}

// LayoutImages reads the index.json of a layout.
func LayoutImages(content []byte) ([]LayoutImage, error) {
	index, err := v1.ParseIndexManifest(bytes.NewReader(content))
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", indexFile, err, ErrInvalid)
	}
	if len(index.Manifests) == 0 || len(index.Manifests) > MaxImages {
		return nil, fmt.Errorf("%s: found %d images, want 1 to %d: %w", indexFile, len(index.Manifests), MaxImages, ErrInvalid)
	}
	var images []LayoutImage
	for _, d := range index.Manifests {
		if err := CheckDigest(d.Digest.String()); err != nil {
			return nil, fmt.Errorf("%s: %w", indexFile, err)
		}
		images = append(images, LayoutImage{Digest: d.Digest.String(), Names: descriptorNames(d)})
	}
	return images, nil
}
