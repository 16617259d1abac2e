// Package volume makes the volumes of pods on a node: scratch space, files from
// ConfigMaps and Secrets, paths of the node, and persistent volumes.
//
// What a file of a volume holds is decided by node/pod, which sees the objects;
// this package puts it on disk so that a running pod sees the old files or the
// new ones and never a mixture. It refuses to decide who may use a volume, and
// to remove anything that it did not make itself.
//
// Types and interface build for wasip1; Linux does the work, and package
// volume/fake simulates it.
package volume

import (
	"context"
	"errors"
	"io/fs"

	"github.com/balsa-run/balsa/node/runtime"
)

// Errors that callers branch on with errors.Is.
var (
	// ErrHostPath: a path of the node is not what its type asks for.
	ErrHostPath = errors.New("path of the node is not of the type asked for")
	// ErrNoSpace: the node's disk has no room for the volume.
	ErrNoSpace = errors.New("no room on the node's disk")
	// ErrInUse: the persistent volume is mounted by a pod.
	ErrInUse = errors.New("volume is in use")
)

// Volumes makes and removes volumes. All calls are idempotent and those that
// name the same pod take turns.
type Volumes interface {
	// Prepare makes the volumes of a pod, or brings their files up to date, and
	// returns the path on the node of each, by its name. A volume that exists
	// keeps its contents, except Files, which are replaced as a whole.
	Prepare(ctx context.Context, pod Pod) (map[string]string, error)
	// Remove unmounts and deletes what Prepare made for a pod. Persistent volumes
	// keep their contents.
	Remove(ctx context.Context, uid runtime.PodUID) error
	// Usage tells what a pod's scratch space takes, by volume name.
	Usage(ctx context.Context, uid runtime.PodUID) (map[string]Usage, error)
	// Pods lists the pods that have anything here.
	Pods(ctx context.Context) ([]runtime.PodUID, error)

	// Persistent lists the persistent volumes that have contents on this node.
	Persistent(ctx context.Context) ([]Stored, error)
	// Delete removes a persistent volume's contents. ErrInUse while a pod has it.
	Delete(ctx context.Context, name string) error
}

// Pod is whose volumes are made.
type Pod struct {
	UID     runtime.PodUID
	Volumes []Volume
	// FSGroup, if not nil, owns scratch space, files and persistent volumes, with
	// the set-group-id bit. OnRootMismatch skips a volume whose root has it.
	FSGroup        *int64
	OnRootMismatch bool
	// Users is the pod's mapping: scratch space and files belong to its root.
	Users *runtime.IDMapping
}

// Volume has a name and one source.
type Volume struct {
	Name       string
	Scratch    *Scratch
	HostPath   *HostPath
	Files      *Files
	Persistent *Persistent
}

// Scratch is an empty folder that lives as long as the pod.
type Scratch struct {
	// Memory: a tmpfs of at most SizeBytes (half of the node's memory if 0).
	Memory    bool
	SizeBytes int64
}

// HostPath is a path of the node.
type HostPath struct {
	Path string
	Type HostPathType
}

// HostPathType says what has to be at the path, in Kubernetes' words.
type HostPathType string

// The types of a HostPath.
const (
	HostPathAny               HostPathType = ""
	HostPathDirectoryOrCreate HostPathType = "DirectoryOrCreate"
	HostPathDirectory         HostPathType = "Directory"
	HostPathFileOrCreate      HostPathType = "FileOrCreate"
	HostPathFile              HostPathType = "File"
	HostPathSocket            HostPathType = "Socket"
	HostPathCharDevice        HostPathType = "CharDevice"
	HostPathBlockDevice       HostPathType = "BlockDevice"
)

// Files is a read-only tree, by path relative to the volume.
type Files struct {
	Files map[string]File
	// Secret files lie in memory only.
	Secret bool
}

// File is one file of a volume.
type File struct {
	Data []byte
	Mode fs.FileMode
}

// Persistent is a volume that outlives pods.
type Persistent struct {
	// Name of the PersistentVolume.
	Name string
	// Path on the node that an administrator made; empty: ours to make.
	Path string
	// FSType "ext4": a file system of SizeBytes in a file of its own; "": a folder.
	FSType    string
	SizeBytes int64
	ReadOnly  bool
}

// Stored is a persistent volume on this node.
type Stored struct {
	Name      string
	SizeBytes int64
	// UsedBy are the pods that have it mounted.
	UsedBy []runtime.PodUID
}

// Usage is the disk space of a volume.
type Usage struct {
	UsedBytes int64
	// Memory: it counts as memory and not as disk.
	Memory bool
	// LimitBytes is 0 for no limit.
	LimitBytes int64
}
