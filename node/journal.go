package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net/netip"

	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/node/pod"
)

// Files on disk. The set is in three parts: pods and what they use, which are
// saved before they are acted on; services, endpoints and nodes, which are
// saved at leisure; and opened secrets, which never touch the durable disk: a
// node that reboots while no server can be reached starts the pods that use
// secrets only once one can.
//
//	Disk     cluster.pb            what registering told: RegisterResponse
//	         pods.pb, services.pb  AssignmentsResponse with full and synced
//	         pods/<uid>            pod.Memory as JSON
//	RunDisk  secrets.pb            AssignmentsResponse
//	         changes/<revision>    AssignmentsResponse: services since services.pb
//	         hosts/<uid>           the pod's hosts file
//	         messages/<uid>_…      an attempt's termination message
const (
	fileCluster    = "cluster.pb"
	filePods       = "pods.pb"
	fileServices   = "services.pb"
	fileSecrets    = "secrets.pb"
	folderPods     = "pods"
	folderHosts    = "hosts"
	folderMessages = "messages"
)

// journal is the set's copy on disk.
type journal struct {
	disk, run Disk
}

func partPods(plural string) bool {
	switch plural {
	case "pods", "configmaps", "persistentvolumeclaims", "persistentvolumes":
		return true
	}
	return false
}
func partSecrets(plural string) bool { return plural == "secrets" }
func partServices(plural string) bool {
	return !partPods(plural) && !partSecrets(plural)
}

// savePods saves what pods depend on.
func (j journal) savePods(s *set) error { return j.encodePods(s)() }

// encodePods returns what writes the pods' part as it is now.
func (j journal) encodePods(s *set) (write func() error) {
	secrets, pods := encodePart(s, j.run, fileSecrets, partSecrets), encodePart(s, j.disk, filePods, partPods)
	return func() error { return errors.Join(secrets(), pods()) }
}

// saveServices saves the rest, and removes the changes that it has.
func (j journal) saveServices(s *set) error {
	part, synced := s.part(partServices)
	if err := encode(part, synced, j.disk, fileServices)(); err != nil || !synced {
		return err
	}
	return j.dropChanges(part.GetRevision())
}

func encodePart(s *set, to Disk, name string, take func(string) bool) (write func() error) {
	part, synced := s.part(take)
	return encode(part, synced, to, name)
}

func encode(part *balsav1.AssignmentsResponse, synced bool, to Disk, name string) (write func() error) {
	if !synced {
		return func() error { return nil }
	}
	data, err := proto.Marshal(part)
	return func() error {
		if err == nil {
			err = to.Write(name, data)
		}
		if err != nil {
			return fmt.Errorf("save %s: %w", name, err)
		}
		return nil
	}
}

// saved is the set on disk.
type saved struct {
	*step
	// acknowledged is the revision of the newest services that servers were told of;
	// behind: those of the set are older; blind: it has none, since they cannot be read.
	acknowledged  int64
	behind, blind bool
}

// load reads the set; its step is nil if there is none. Without pods.pb there is
// none: a node that knows its services only must not take its pods for orphans. The
// step's revision is that of the pods.
func (j journal) load() (out saved, err error) {
	pods, err := readPart(j.disk, filePods)
	if err != nil || pods == nil {
		return saved{}, err
	}
	services, err := readPart(j.disk, fileServices)
	broken := err != nil
	secrets, err2 := readPart(j.run, fileSecrets)
	err = errors.Join(err, err2)
	pods.Upserts = append(append(pods.Upserts, services.GetUpserts()...), secrets.GetUpserts()...)
	out.step = &step{}
	out.add(pods)
	if broken { // changes of what is not known say little
		out.behind, out.blind = true, true
		return out, err
	}
	out.acknowledged, err2 = j.addChanges(services.GetRevision(), out.changes)
	out.behind = err2 != nil
	return out, errors.Join(err, err2)
}

// readPart returns nil for a file that is not there.
func readPart(d Disk, name string) (*balsav1.AssignmentsResponse, error) {
	data, err := d.Read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	part := &balsav1.AssignmentsResponse{}
	if err := proto.Unmarshal(data, part); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if !part.GetSynced() {
		return nil, fmt.Errorf("read %s: not a whole set", name)
	}
	return part, nil
}

// forgetSet removes the set.
func (j journal) forgetSet() error {
	return errors.Join(j.disk.Remove(filePods), j.disk.Remove(fileServices), j.run.Remove(fileSecrets), j.dropChanges(math.MaxInt64))
}

func (j journal) saveCluster(r *balsav1.RegisterResponse) error {
	data, err := proto.Marshal(r)
	if err != nil {
		return fmt.Errorf("save %s: %w", fileCluster, err)
	}
	if err := j.disk.Write(fileCluster, data); err != nil {
		return fmt.Errorf("save %s: %w", fileCluster, err)
	}
	return nil
}

// loadCluster returns nil when nothing was saved.
func (j journal) loadCluster() (*balsav1.RegisterResponse, error) {
	data, err := j.disk.Read(fileCluster)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", fileCluster, err)
	}
	r := &balsav1.RegisterResponse{}
	if err := proto.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("read %s: %w", fileCluster, err)
	}
	return r, nil
}

// factsOf checks what a server, or the disk, says of the cluster.
func factsOf(r *balsav1.RegisterResponse) (ClusterFacts, error) {
	c := r.GetCluster()
	f := ClusterFacts{ClusterID: c.GetClusterId(), DNSDomain: c.GetDnsDomain(), Servers: c.GetServers()}
	var errs []error
	for _, p := range []struct {
		name, text string
		to         *netip.Prefix
	}{{"the node's pod CIDR", r.GetNode().GetSpec().GetPodCidr(), &f.PodCIDR},
		{"the cluster's pod CIDR", c.GetPodCidr(), &f.ClusterCIDR}, {"the service CIDR", c.GetServiceCidr(), &f.ServiceCIDR}} {
		prefix, err := netip.ParsePrefix(p.text)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s %q: %w", p.name, p.text, err))
		}
		*p.to = prefix
	}
	if f.DNSDomain == "" {
		errs = append(errs, errors.New("the DNS domain is empty"))
	}
	return f, errors.Join(errs...)
}

func (j journal) saveMemory(uid string, m pod.Memory) error {
	data, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("save memory of pod %s: %w", uid, err)
	}
	if err := j.disk.Write(folderPods+"/"+uid, data); err != nil {
		return fmt.Errorf("save memory of pod %s: %w", uid, err)
	}
	return nil
}

// loadMemory returns an empty memory when there is none.
func (j journal) loadMemory(uid string) (pod.Memory, error) {
	var m pod.Memory
	data, err := j.disk.Read(folderPods + "/" + uid)
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &m)
	}
	if err != nil {
		return pod.Memory{}, fmt.Errorf("read memory of pod %s: %w", uid, err)
	}
	return m, nil
}
