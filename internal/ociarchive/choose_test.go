package ociarchive

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

const (
	oneDigest = "sha256:1111111111111111111111111111111111111111111111111111111111111111"
	twoDigest = "sha256:2222222222222222222222222222222222222222222222222222222222222222"
)

func entryOf(digest, platform string) string {
	os, arch, _ := strings.Cut(platform, "/")
	if platform != "" {
		platform = fmt.Sprintf(`,"platform":{"os":%q,"architecture":%q}`, os, arch)
	}
	return fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":%q,"size":1%s}`, digest, platform)
}

func indexOf(entries ...string) string {
	return `{"schemaVersion":2,"manifests":[` + strings.Join(entries, ",") + `]}`
}

func TestChooseManifest(t *testing.T) {
	for content, want := range map[string]string{
		`{"schemaVersion":2,"config":{},"layers":[]}`:                                     "",
		indexOf(entryOf(oneDigest, "linux/arm64"), entryOf(twoDigest, "linux/amd64")):     twoDigest,
		indexOf(entryOf(oneDigest, "")):                                                   oneDigest,
		indexOf(entryOf(oneDigest, "unknown/unknown"), entryOf(twoDigest, "linux/amd64")): twoDigest,
		indexOf(entryOf(oneDigest, "linux/amd64"), entryOf(twoDigest, "linux/amd64")):     oneDigest,
		indexOf(entryOf(oneDigest, ""), entryOf(twoDigest, "")):                           "error",
		indexOf(entryOf(oneDigest, "windows/amd64")):                                      "error",
		indexOf(entryOf("sha512:"+strings.Repeat("1", 128), "linux/amd64")):               "error",
		indexOf():                           "error",
		`{"schemaVersion":2}`:               "error",
		`{"schemaVersion":1,"fsLayers":[]}`: "error",
		`{"schemaVersion":2,"manifests":[],"layers":[]}`:                                              "error",
		`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","manifests":[]}`: "error",
		`[]`: "error", ``: "error",
		indexOf(strings.Split(strings.Repeat(entryOf(oneDigest, "linux/s390x")+"|", MaxIndexEntries)+entryOf(twoDigest, "linux/amd64"), "|")...): "error",
	} {
		got, err := ChooseManifest([]byte(content), "amd64")
		if want == "error" {
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("%.100s: %q, %v, want ErrInvalid", content, got, err)
			}
		} else if err != nil || got != want {
			t.Errorf("%.100s: %q, %v, want %q", content, got, err, want)
		}
	}
}

func FuzzChooseManifest(f *testing.F) {
	f.Add([]byte(indexOf(entryOf(oneDigest, "linux/amd64"))))
	f.Add([]byte(`{"schemaVersion":2,"config":{},"layers":[]}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		digest, err := ChooseManifest(content, "amd64")
		if err == nil && digest != "" && CheckDigest(digest) != nil {
			t.Errorf("chose %q", digest)
		}
		_, _ = ParseManifest(content)
		_, _ = LayoutImages(content)
	})
}
