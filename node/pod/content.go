package pod

import (
	"fmt"
	"io/fs"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/node/volume"
	"github.com/balsa-run/balsa/object"
)

// defaultFileMode is that of files from ConfigMaps, Secrets and the pod itself.
const defaultFileMode = 0o644

// content is what a volume of files holds. An error names what is missing.
func (s *step) content(v *balsav1.Volume) (*volume.Files, error) {
	b := &builder{s: s, pod: s.podWithStatus(), out: &volume.Files{Files: map[string]volume.File{}}}
	switch {
	case v.GetConfigMap() != nil:
		b.mode = modeOf(v.GetConfigMap().DefaultMode)
		return b.out, b.configMap(v.GetConfigMap().GetName(), v.GetConfigMap().GetItems(), v.GetConfigMap().GetOptional())
	case v.GetSecret() != nil:
		b.mode = modeOf(v.GetSecret().DefaultMode)
		return b.out, b.secret(v.GetSecret().GetSecretName(), v.GetSecret().GetItems(), v.GetSecret().GetOptional())
	case v.GetDownwardApi() != nil:
		b.mode = modeOf(v.GetDownwardApi().DefaultMode)
		return b.out, b.downward(v.GetDownwardApi().GetItems())
	case v.GetProjected() != nil:
		b.mode = modeOf(v.GetProjected().DefaultMode)
		return b.out, b.projected(v.GetProjected().GetSources())
	}
	return nil, fmt.Errorf("it has no source that this node knows")
}

func modeOf(mode *int32) fs.FileMode {
	if mode == nil {
		return defaultFileMode
	}
	return fs.FileMode(*mode) & fs.ModePerm
}

type builder struct {
	s    *step
	pod  *balsav1.Pod
	mode fs.FileMode
	out  *volume.Files
}

func (b *builder) projected(sources []*balsav1.VolumeProjection) error {
	for _, from := range sources {
		var err error
		switch {
		case from.GetConfigMap() != nil:
			err = b.configMap(from.GetConfigMap().GetName(), from.GetConfigMap().GetItems(), from.GetConfigMap().GetOptional())
		case from.GetSecret() != nil:
			err = b.secret(from.GetSecret().GetName(), from.GetSecret().GetItems(), from.GetSecret().GetOptional())
		case from.GetDownwardApi() != nil:
			err = b.downward(from.GetDownwardApi().GetItems())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *builder) configMap(name string, items []*balsav1.KeyToPath, optional bool) error {
	m, ok := b.s.v.Sources.ConfigMaps[name]
	data := make(map[string][]byte, len(m.GetData())+len(m.GetBinaryData()))
	for key, value := range m.GetData() {
		data[key] = []byte(value)
	}
	for key, value := range m.GetBinaryData() {
		data[key] = value
	}
	return b.keys("configmap", name, data, ok, items, optional)
}

func (b *builder) secret(name string, items []*balsav1.KeyToPath, optional bool) error {
	b.out.Secret = true
	m, ok := b.s.v.Sources.Secrets[name]
	return b.keys("secret", name, m.GetData(), ok, items, optional)
}

// keys makes a file of every key, or of those that items choose.
func (b *builder) keys(kind, name string, data map[string][]byte, there bool, items []*balsav1.KeyToPath, optional bool) error {
	full := b.pod.GetMetadata().GetNamespace() + "/" + name
	if !there && !optional {
		return fmt.Errorf("%s %q not found", kind, full)
	}
	if len(items) == 0 {
		for key, value := range data {
			b.out.Files[key] = volume.File{Data: value, Mode: b.mode}
		}
		return nil
	}
	for _, item := range items {
		value, ok := data[item.GetKey()]
		switch {
		case ok:
			b.put(item.GetPath(), value, item.Mode)
		case !optional:
			return fmt.Errorf("key %q not found in %s %q", item.GetKey(), kind, full)
		}
	}
	return nil
}

func (b *builder) put(path string, data []byte, mode *int32) {
	f := volume.File{Data: data, Mode: b.mode}
	if mode != nil {
		f.Mode = modeOf(mode)
	}
	b.out.Files[path] = f
}

func (b *builder) downward(items []*balsav1.DownwardAPIVolumeFile) error {
	for _, item := range items {
		var text string
		var err error
		if ref := item.GetResourceFieldRef(); ref != nil {
			text, err = resourceField(b.pod.GetSpec(), ref, nil, b.s.v.Node)
		} else {
			text, err = fieldOf(b.pod, item.GetFieldRef().GetFieldPath())
		}
		if err != nil {
			return fmt.Errorf("%s: %w", item.GetPath(), err)
		}
		b.put(item.GetPath(), []byte(text), item.Mode)
	}
	return nil
}

// fieldOf is a field of the pod as text.
func fieldOf(pod *balsav1.Pod, path string) (string, error) {
	ref, ok := object.ParseVolumeFieldRef(path)
	if !ok {
		return "", fmt.Errorf("field %q is not known", path)
	}
	return ref.Value(pod), nil
}
