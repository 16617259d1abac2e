package node

import (
	"context"
	"errors"

	"github.com/balsa-run/balsa/node/pod"
	"github.com/balsa-run/balsa/node/runtime"
)

// Images are the node's images, ready to run.
type Images interface {
	// Local returns an image that is complete on the node; ErrImageNotPresent
	// otherwise. It asks nobody.
	Local(ctx context.Context, name string) (runtime.Image, error)
	// Pull has an image ready to run, and brings what the node lacks. An image that
	// a registry gave to others is given only to who has access as well. It calls
	// progress when a transfer begins, and a few times a second at most when
	// there is something new; not at all when nothing is transferred.
	Pull(ctx context.Context, want ImagePull, progress func(ImageProgress)) (PulledImage, error)
	// Prune removes the images whose manifests are not to be kept, and returns
	// what it removed.
	Prune(ctx context.Context, keep func(manifestDigest string) bool) ([]string, error)
}

// ImagePull is an image that a pod wants.
type ImagePull struct {
	// Name is as the pod's spec has it.
	Name string
	// Policy is Always, IfNotPresent, or Never: then nobody is asked.
	Policy string
	// Credentials are opened .dockerconfigjson values, the first that fits counts.
	Credentials [][]byte
}

// ImageProgress is how far a transfer is.
type ImageProgress = pod.ImageProgress

// PulledImage is the outcome of a Pull.
type PulledImage struct {
	Image     runtime.Image
	SizeBytes int64
	// Transferred is false if all of it was there already.
	Transferred bool
}

// Errors of Images. Any other is told as ErrImagePull, and tried again.
var (
	// ErrImageNotPresent: there is no image of that name where it was looked for.
	ErrImageNotPresent = errors.New("image is not present")
	// ErrImageName: the name can be no image's.
	ErrImageName = errors.New("invalid image name")
	// ErrImageDenied: the image is on the node, but the policy forbids to ask
	// whether this pod may run it, which it has not shown.
	ErrImageDenied = errors.New("no access to the image")
	// ErrImageUnreachable: nobody could be asked. A container that has run before
	// is then started from what the node has.
	ErrImageUnreachable = errors.New("nobody can be asked for the image")
)
