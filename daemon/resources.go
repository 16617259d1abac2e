package daemon

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/node"
	"github.com/balsa-run/balsa/node/pressure"
	"github.com/balsa-run/balsa/object"
)

// DefaultMaxPods is the node's, MaxPods the most that --max-pods takes: a node's
// addresses are a /24, of which some are the node's own.
const (
	DefaultMaxPods = node.DefaultMaxPods
	MaxPods        = 250
)

// ResourceOptions say what of a machine pods may have, and when it is short.
type ResourceOptions struct {
	// Reserved for everything that is not a pod, as quantities; empty: nothing.
	ReservedCPU, ReservedMemory, ReservedEphemeralStorage string
	// MaxPods on the node; 0: 110.
	MaxPods int
	// Eviction says how much has to stay available, by signal: memory.available in
	// bytes, nodefs.available, nodefs.inodesFree and pid.available in percent. What
	// is left out has the kubelet's default.
	Eviction map[string]string
	// ImageGCHigh is how full the disk may be, in percent, before unused images go;
	// ImageGCLow is how full it then shall be. 0: 85 and 80.
	ImageGCHigh, ImageGCLow int64
	// Taints of a node that is new to the cluster, as key=value:effect.
	Taints []string
}

// resources is what the options mean.
type resources struct {
	milliCPU, memory, ephemeral int64
	thresholds                  pressure.Thresholds
	taints                      []*balsav1.Taint
}

func (o ResourceOptions) parse() (r resources, err error) {
	for _, q := range []struct {
		flag, text string
		to         *int64
		of         func(*balsav1.Quantity) (int64, error)
	}{
		{"--reserved-cpu", o.ReservedCPU, &r.milliCPU, object.MilliCPU},
		{"--reserved-memory", o.ReservedMemory, &r.memory, object.Bytes},
		{"--reserved-ephemeral-storage", o.ReservedEphemeralStorage, &r.ephemeral, object.Bytes},
	} {
		if q.text == "" {
			continue
		}
		if *q.to, err = q.of(object.NewQuantity(q.text)); err != nil || *q.to < 0 {
			return r, fmt.Errorf("%s %q is no quantity such as 500m, 2 or 1Gi", q.flag, q.text)
		}
	}
	if o.MaxPods < 0 || o.MaxPods > MaxPods {
		return r, fmt.Errorf("--max-pods: found %d, allowed 1 to %d", o.MaxPods, MaxPods)
	}
	if r.thresholds, err = o.thresholds(); err != nil {
		return r, err
	}
	r.taints, err = parseTaints(o.Taints)
	return r, err
}

func (o ResourceOptions) thresholds() (pressure.Thresholds, error) {
	t := pressure.Defaults()
	t.ImagesHighPercent = cmp.Or(o.ImageGCHigh, t.ImagesHighPercent)
	t.ImagesLowPercent = cmp.Or(o.ImageGCLow, min(t.ImagesLowPercent, t.ImagesHighPercent))
	percents := map[string]*int64{
		"nodefs.available": &t.DiskAvailablePercent, "nodefs.inodesFree": &t.InodesAvailablePercent, "pid.available": &t.PidsAvailablePercent,
	}
	for signal, text := range o.Eviction {
		if signal == "memory.available" {
			n, err := object.Bytes(object.NewQuantity(text))
			if err != nil || text == "" {
				return t, fmt.Errorf("--eviction-hard %s=%s: want bytes, such as 100Mi", signal, text)
			}
			t.MemoryAvailableBytes = n
			continue
		}
		to, known := percents[signal]
		if !known {
			return t, fmt.Errorf("--eviction-hard: %q is not known; known: memory.available, nodefs.available, nodefs.inodesFree, pid.available", signal)
		}
		number, percent := strings.CutSuffix(text, "%")
		n, err := strconv.ParseInt(number, 10, 64)
		if err != nil || !percent {
			return t, fmt.Errorf("--eviction-hard %s=%s: want percent, such as 10%%", signal, text)
		}
		*to = n
	}
	return t, t.Check()
}

// parseTaints reads key=value:effect and key:effect.
func parseTaints(texts []string) ([]*balsav1.Taint, error) {
	var out []*balsav1.Taint
	for _, text := range texts {
		pair, effect, _ := strings.Cut(text, ":")
		key, value, _ := strings.Cut(pair, "=")
		allowed := []string{object.TaintNoSchedule, object.TaintPreferNoSchedule, object.TaintNoExecute}
		if key == "" || !slices.Contains(allowed, effect) {
			return nil, fmt.Errorf("--taints %q: want key=value:effect or key:effect, with an effect of %s", text, strings.Join(allowed, ", "))
		}
		out = append(out, &balsav1.Taint{Key: key, Value: value, Effect: effect})
	}
	probe := &balsav1.Node{ApiVersion: "v1", Kind: "Node", Metadata: &balsav1.ObjectMeta{Name: "n"}, Spec: &balsav1.NodeSpec{Taints: out}}
	if violations := object.Validate(probe, object.System); len(violations) > 0 {
		return nil, fmt.Errorf("--taints: %s", violations[0])
	}
	return out, nil
}

// devResources let a full disk be: whoever tries things on a laptop has no other.
func devResources() ResourceOptions {
	return ResourceOptions{Eviction: map[string]string{"nodefs.available": "1%", "nodefs.inodesFree": "1%"}, ImageGCHigh: 99, ImageGCLow: 98}
}

// apply puts them into the node's configuration.
func (r resources) apply(c node.Config, maxPods int) node.Config {
	c.ReservedMilliCPU, c.ReservedMemoryBytes, c.ReservedEphemeralBytes = r.milliCPU, r.memory, r.ephemeral
	c.Thresholds, c.Taints, c.MaxPods = r.thresholds, r.taints, maxPods
	return c
}
