package daemon

import (
	"math"
	"strings"
	"testing"

	"github.com/balsa-run/balsa/node"
	"github.com/balsa-run/balsa/node/image"
	"github.com/balsa-run/balsa/node/pressure"
)

func TestResourceOptions(t *testing.T) {
	r, err := ResourceOptions{}.parse()
	if err != nil || r.thresholds != pressure.Defaults() || r.milliCPU != 0 || len(r.taints) != 0 {
		t.Fatalf("the defaults: %+v, %v", r, err)
	}
	r, err = ResourceOptions{
		ReservedCPU: "500m", ReservedMemory: "1Gi", ReservedEphemeralStorage: "10Gi", MaxPods: 20, ImageGCHigh: 70, ImageGCLow: 60,
		Eviction: map[string]string{"memory.available": "200Mi", "nodefs.available": "15%", "nodefs.inodesFree": "6%", "pid.available": "7%"},
		Taints:   []string{"dedicated=db:NoSchedule", "fresh:NoExecute"},
	}.parse()
	want := pressure.Defaults()
	want.MemoryAvailableBytes, want.DiskAvailablePercent, want.InodesAvailablePercent, want.PidsAvailablePercent = 200<<20, 15, 6, 7
	want.ImagesHighPercent, want.ImagesLowPercent = 70, 60
	if err != nil || r.thresholds != want || r.milliCPU != 500 || r.memory != 1<<30 || r.ephemeral != 10<<30 {
		t.Errorf("got %+v, %v", r, err)
	}
	if len(r.taints) != 2 || r.taints[0].GetKey() != "dedicated" || r.taints[0].GetValue() != "db" || r.taints[1].GetEffect() != "NoExecute" || r.taints[1].GetValue() != "" {
		t.Errorf("taints %v", r.taints)
	}
	c := r.apply(node.Config{Name: "n"}, 20)
	if c.Name != "n" || c.MaxPods != 20 || c.ReservedMilliCPU != 500 || c.ReservedMemoryBytes != 1<<30 || c.ReservedEphemeralBytes != 10<<30 || c.Thresholds != want || len(c.Taints) != 2 {
		t.Errorf("configuration %+v", c)
	}
	if _, err := devResources().parse(); err != nil {
		t.Error(err)
	}
}

func TestResourceOptionsRefused(t *testing.T) {
	for _, c := range []struct {
		o    ResourceOptions
		want string
	}{
		{ResourceOptions{ReservedCPU: "much"}, `--reserved-cpu "much" is no quantity`},
		{ResourceOptions{ReservedMemory: "-1Gi"}, "--reserved-memory"},
		{ResourceOptions{MaxPods: 300}, "--max-pods: found 300, allowed 1 to 250"},
		{ResourceOptions{Eviction: map[string]string{"imagefs.available": "5%"}}, `"imagefs.available" is not known`},
		{ResourceOptions{Eviction: map[string]string{"nodefs.available": "5Gi"}}, "want percent"},
		{ResourceOptions{Eviction: map[string]string{"memory.available": "5%"}}, "want bytes"},
		{ResourceOptions{Eviction: map[string]string{"pid.available": "101%"}}, "found 101%, allowed 0 to 100"},
		{ResourceOptions{ImageGCHigh: 50, ImageGCLow: 60}, "allowed up to images high, 50%"},
		{ResourceOptions{Taints: []string{"dedicated"}}, "want key=value:effect"},
		{ResourceOptions{Taints: []string{"a:NoSchedule", "a:NoSchedule"}}, "--taints"},
		{ResourceOptions{Taints: []string{"a b:NoSchedule"}}, "--taints"},
	} {
		if _, err := c.o.parse(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.o, err, c.want)
		}
	}
}

func TestThisMachine(t *testing.T) {
	m := thisMachine{dirs: []string{t.TempDir(), t.TempDir() + "/not/there/yet"}}
	facts, err := m.Facts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	i := facts.Info
	for name, text := range map[string]string{
		"boot id": i.GetBootId(), "kernel": i.GetKernelVersion(), "image": i.GetOsImage(), "runtime": i.GetContainerRuntimeVersion(),
		"system": i.GetOperatingSystem(), "architecture": i.GetArchitecture(), "version": i.GetKubeletVersion(),
	} {
		if text == "" {
			t.Errorf("no %s", name)
		}
	}
	if !strings.HasPrefix(i.GetContainerRuntimeVersion(), "runc://") || facts.EphemeralBytes == 0 || facts.MilliCPU < 1000 {
		t.Errorf("facts %+v", facts)
	}
	u, err := m.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if u.MemoryBytes != facts.MemoryBytes || u.MemoryAvailable <= 0 || u.MemoryAvailable > u.MemoryBytes || u.DiskAvailable <= 0 || u.DiskBytes < u.DiskAvailable ||
		u.DiskUsed <= 0 || u.Pids <= 0 || u.PidsAvailable <= 0 || u.PidsAvailable >= u.Pids || u.CPUNanos <= 0 || u.MemoryWorkingSet <= 0 {
		t.Errorf("usage %+v", u)
	}
}

func TestTheFullestDiskCounts(t *testing.T) {
	roomy := space{bytes: 100, available: 50, inodes: 100, inodesAvailable: 90}
	for _, tighter := range []space{{bytes: 1000, available: 400}, {bytes: 100, available: 90, inodes: 100, inodesAvailable: 1}} {
		if tighter.tightness() <= roomy.tightness() {
			t.Errorf("%+v is not tighter than %+v", tighter, roomy)
		}
	}
}

func TestBusyTime(t *testing.T) {
	if n, err := busyNanos("cpu  1 2 3 1000 1000 4 5 6 70 80"); err != nil || n != 21*int64(clockTick) {
		t.Errorf("got %d, %v", n, err)
	}
	for _, bad := range []string{"", "cpu 1 2", "intr 1 2 3 4 5 6 7 8 9", "cpu 1 2 x 4 5 6 7 8 9"} {
		if _, err := busyNanos(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestImagesAreAskedForWhatIsWanted(t *testing.T) {
	disk := image.Disk{CapacityBytes: 1000, AvailableBytes: 300}
	old := image.ImageInfo{Digest: "sha256:a", Parts: []image.PartInfo{{Kind: "layers", Hex: "a", Bytes: 100}}}
	plan := image.PlanGC(image.GCInput{Now: old.LastUsed.AddDate(1, 0, 0), Disk: disk, Images: []image.ImageInfo{old}, InUse: func(string) bool { return false }, Policy: gcPolicy(disk, 60)})
	if math.Abs(float64(plan.WantBytes-60)) > 1 || len(plan.Images) != 1 {
		t.Errorf("plan %+v", plan)
	}
	if p := gcPolicy(disk, 5000); p.LowPercent != 0 || p.Check() != nil {
		t.Errorf("more than there is: %+v", p)
	}
}

// BenchmarkUsage is what the machine's measuring costs every ten seconds.
func BenchmarkUsage(b *testing.B) {
	m := thisMachine{dirs: []string{b.TempDir()}}
	for b.Loop() {
		if _, err := m.Usage(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
