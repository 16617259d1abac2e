package runc

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/balsa-run/balsa/node/runtime"
)

// The directory of a pod, <Options.Dir>/pods/<uid>. It is the truth: what the
// agent holds in memory can be read again from here and from the shim.
//
//	pod.json          podRecord; written when all of the sandbox is made
//	removing          exists once RemovePod has begun
//	shim.lock         locked as long as the shim lives
//	shim.sock shim.log
//	pause.lock        locked as long as the pod's process namespace lives
//	ns/{net,uts,ipc,user,pid}  pinned namespaces
//	etc/{hosts,resolv.conf,hostname}  shm/ (tmpfs)
//	runc/<id>/        libcontainer's state
//	logs/<id>.log[.n]
//	execs/<pid>-<ticks>  a process that an exec has begun and not ended yet
//	containers/<id>/  id is <name>-<attempt>
//	    container.json  containerRecord
//	    config.json     the OCI configuration, for balsa-runc
//	    started exit    the shim's records (exit also the agent's, of lost ones)
//	    target-pid      the process namespace of another container, pinned
//	    volumes/<n>     mounts of sub paths and with mapped ids
//	    layers/         for a moment, while the overlay is mounted
//	    upper/ work/ rootfs/  the overlay; gone once the exit was tidied up
const (
	podsDir       = "pods"
	podFile       = "pod.json"
	removingFile  = "removing"
	lockFile      = "shim.lock"
	pauseLockFile = "pause.lock"
	shimLogFile   = "shim.log"
	nsDir         = "ns"
	etcDir        = "etc"
	shmDir        = "shm"
	logsDir       = "logs"
	execsDir      = "execs"
	containersDir = "containers"
	containerFile = "container.json"
	exitFile      = "exit"
	startedFile   = "started"
	upperDir      = "upper"
	workDir       = "work"
	rootFSDir     = "rootfs"
	targetFile    = "target-pid"
	volumesDir    = "volumes"
	layersDir     = "layers"
	// shimCgroup is the shim's cgroup below the pod's. No container id equals
	// it: they end in a number.
	shimCgroup = "shim"
	// pauseCgroup is that of the process that holds the process namespace.
	pauseCgroup = "pause"
	// podsCgroup is below the node's prefix; everything in it is a pod.
	podsCgroup = "pods"

	shmBytes = 64 << 20
)

func etcFiles() []string { return []string{"hosts", "resolv.conf", "hostname"} }

// podRecord is pod.json.
type podRecord struct {
	Config    runtime.PodConfig
	CreatedAt time.Time
	// BootID tells whether namespaces and processes can still exist.
	BootID string
}

// containerRecord is container.json.
type containerRecord struct {
	Name        string
	Attempt     int
	ImageDigest string
	CreatedAt   time.Time
	// CPUShares as asked for; 0 is the kernel's default.
	CPUShares uint64
}

func containerID(name string, attempt int) string { return name + "-" + strconv.Itoa(attempt) }

// writeJSON replaces a file atomically. It does not sync: these files matter
// as long as the machine runs, and are rebuilt or removed after a crash.
func writeJSON(path string, value any) error {
	content, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	return replaceFile(path, content, false)
}

func readJSON(path string, value any) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(content, value); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

// replaceFile writes beside the file and renames; sync makes it durable.
func replaceFile(path string, content []byte, sync bool) error {
	temp := path + ".new"
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil && sync {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil || !sync {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// bootID changes with every start of the machine.
func bootID() (string, error) {
	content, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("boot id: %w", err)
	}
	return strings.TrimSpace(string(content)), nil
}
