package node

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/node/pod"
	"github.com/balsa-run/balsa/object"
)

// HostFiles are files of the node that pods depend on.
type HostFiles interface {
	Hosts() ([]byte, error)
	ResolvConf() ([]byte, error)
	// Seccomp reads a profile by its name, which is a path below a folder.
	Seccomp(profile string) ([]byte, error)
}

// maxHostFile bounds what is read of one file.
const maxHostFile = 1 << 20

// HostPaths are HostFiles in the usual places.
type HostPaths struct {
	// HostsFile and ResolvConfFile; empty: those in /etc.
	HostsFile      string
	ResolvConfFile string
	// SeccompFolder holds the profiles; empty: there are none.
	SeccompFolder string
}

// Hosts implements HostFiles.
func (h HostPaths) Hosts() ([]byte, error) { return readHead(orElse(h.HostsFile, "/etc/hosts")) }

// ResolvConf implements HostFiles.
func (h HostPaths) ResolvConf() ([]byte, error) {
	return readHead(orElse(h.ResolvConfFile, "/etc/resolv.conf"))
}

// Seccomp implements HostFiles. The name cannot lead out of the folder.
func (h HostPaths) Seccomp(profile string) (data []byte, err error) {
	if h.SeccompFolder == "" {
		return nil, errors.New("the node has no folder of seccomp profiles")
	}
	root, err := os.OpenRoot(h.SeccompFolder)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	f, err := root.Open(profile)
	if err != nil {
		return nil, err
	}
	return bounded(f)
}

func orElse(path, usual string) string {
	if path == "" {
		return usual
	}
	return path
}

func readHead(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return bounded(f)
}

func bounded(f fs.File) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(f, maxHostFile+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	if len(data) > maxHostFile {
		return nil, fmt.Errorf("it has more than %d bytes", maxHostFile)
	}
	return data, nil
}

// hostFiles reads what a pod needs of the node's files.
func (a *Agent) hostFiles(p *balsav1.Pod) pod.HostFiles {
	var out pod.HostFiles
	var errs []error
	spec := p.GetSpec()
	if spec.GetHostNetwork() {
		data, err := a.cfg.HostFiles.Hosts()
		out.Hosts, errs = data, append(errs, err)
	}
	if spec.GetHostNetwork() || spec.GetDnsPolicy() == object.DNSDefault {
		data, err := a.cfg.HostFiles.ResolvConf()
		out.ResolvConf, errs = data, append(errs, err)
	}
	for _, name := range pod.SeccompProfiles(p) {
		data, err := a.cfg.HostFiles.Seccomp(name)
		if err != nil {
			errs = append(errs, fmt.Errorf("seccomp profile %s: %w", name, err))
			continue
		}
		if out.Seccomp == nil {
			out.Seccomp = map[string][]byte{}
		}
		out.Seccomp[name] = data
	}
	if err := errors.Join(errs...); err != nil {
		out.Problem = err.Error()
	}
	return out
}
