package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
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

func (j journal) saveServices(s *set) error {
	return encodePart(s, j.disk, fileServices, partServices)()
}

func encodePart(s *set, to Disk, name string, take func(string) bool) (write func() error) {
	part, synced := s.part(take)
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

// load reads the set. Without pods.pb there is none: a node that knows its
// services only must not take its pods for orphans.
func (j journal) load() (*step, error) {
	pods, err := readPart(j.disk, filePods)
	if err != nil || pods == nil {
		return nil, err
	}
	all := &step{}
	var errs []error
	for _, from := range []struct {
		disk Disk
		name string
	}{{j.disk, fileServices}, {j.run, fileSecrets}} {
		part, err := readPart(from.disk, from.name)
		errs = append(errs, err)
		if part == nil {
			continue
		}
		pods.Upserts = append(pods.Upserts, part.GetUpserts()...)
	}
	all.add(pods)
	return all, errors.Join(errs...)
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
	return errors.Join(j.disk.Remove(filePods), j.disk.Remove(fileServices), j.run.Remove(fileSecrets))
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
