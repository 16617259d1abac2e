package runc

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/balsa-run/balsa/node/runtime"
)

// copyLab is a container that runs, and a file of the node that nobody may reach.
func copyLab(t *testing.T, command ...string) (*machine, string) {
	t.Helper()
	m := newMachine(t)
	rt := m.open()
	if _, err := rt.RunPod(t.Context(), runtime.PodConfig{UID: "a", Hostname: "h"}); err != nil {
		t.Fatal(err)
	}
	if err := rt.RunContainer(t.Context(), "a", runtime.ContainerConfig{Name: "c", Image: m.image, Command: command}); err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("of the node"), 0o644); err != nil {
		t.Fatal(err)
	}
	return m, secret
}

func oneFile(t *testing.T, name, content string) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content))})
	_, err2 := io.WriteString(w, content)
	if err := errors.Join(err, err2, w.Close()); err != nil {
		t.Fatal(err)
	}
	return &b
}

// TestCopyStaysInTheContainer: links that lead to the node's files, and the
// magic ones of /proc, lead nowhere.
func TestCopyStaysInTheContainer(t *testing.T) {
	m, secret := copyLab(t, "/bin/sim", "forever")
	dir := filepath.Dir(secret)
	script := fmt.Sprintf("mkdir -p /t && ln -s %s /t/abs && ln -s ../../../../../../../../%s /t/up && ln -s /proc/self/root /t/magic && ln -s /proc/1/root /t/init", dir, dir)
	script = strings.NewReplacer("mkdir", "/bin/busybox mkdir", "ln -s", "/bin/busybox ln -s").Replace(script)
	if exit, err := m.rt.Exec(t.Context(), "a", "c", runtime.ExecConfig{Args: []string{"/bin/sh", "-c", script}}); err != nil || exit.Code != 0 {
		t.Fatal(exit, err)
	}
	for _, way := range []string{"/t/abs/secret", "/t/up/secret", "/t/magic" + secret, "/t/init" + secret, "/../../../../../.." + secret} {
		var out bytes.Buffer
		if err := m.rt.CopyOut(t.Context(), "a", "c", way, &out); err == nil || strings.Contains(out.String(), "of the node") {
			t.Errorf("%s: %v, %d bytes", way, err, out.Len())
		}
		if _, err := m.rt.CopyIn(t.Context(), "a", "c", filepath.Dir(way), oneFile(t, "planted", "x")); err == nil {
			if _, err := os.Stat(filepath.Join(dir, "planted")); err == nil {
				t.Errorf("%s: a file was written on the node", way)
			}
		}
	}
	if _, err := m.rt.CopyIn(t.Context(), "a", "c", "/t", oneFile(t, "abs/planted", "x")); !errors.Is(err, runtime.ErrInvalid) {
		t.Errorf("an entry below a link that leads out: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "planted")); err == nil {
		t.Error("a file was written on the node")
	}
}

// TestCopyAgainstSwaps: while a container puts links in the place of folders as
// fast as it can, nothing is read from the node and nothing written to it.
func TestCopyAgainstSwaps(t *testing.T) {
	m, secret := copyLab(t, "/bin/sh", "-c", "while :; do /bin/busybox true; done")
	dir := filepath.Dir(secret)
	swap := fmt.Sprintf("cd /tmp && /bin/busybox mkdir -p real && echo mine >real/secret && while :; do "+
		"/bin/busybox rm -rf way; /bin/busybox ln -s %s way; /bin/busybox rm -f way; /bin/busybox cp -r real way; done", dir)
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() {
		_, err := m.rt.Exec(ctx, "a", "c", runtime.ExecConfig{Args: []string{"/bin/sh", "-c", swap}})
		over <- err
	}()
	read := 0
	for deadline := time.Now().Add(3 * time.Second); time.Now().Before(deadline); {
		var out bytes.Buffer
		for _, way := range []string{"/tmp/way/secret", "/tmp/way", "/tmp"} {
			out.Reset()
			if m.rt.CopyOut(t.Context(), "a", "c", way, &out) == nil {
				read++
			}
			if strings.Contains(out.String(), "of the node") {
				t.Fatalf("%s led to a file of the node", way)
			}
		}
		_, _ = m.rt.CopyIn(t.Context(), "a", "c", "/tmp", oneFile(t, "way/planted", "x"))
		_, _ = m.rt.CopyIn(t.Context(), "a", "c", "/tmp/way", oneFile(t, "planted", "x"))
	}
	cancel()
	<-over
	if _, err := os.Lstat(filepath.Join(dir, "planted")); err == nil {
		t.Error("a file was written on the node")
	}
	if read == 0 {
		t.Error("nothing could be copied at all: the test shows nothing")
	}
}

// TestCopyKeepsWhatFilesHave: hard links, attributes, modes, times and owners.
func TestCopyKeepsWhatFilesHave(t *testing.T) {
	m, _ := copyLab(t, "/bin/sim", "forever")
	at := time.Date(2021, 2, 3, 4, 5, 6, 0, time.UTC)
	var in bytes.Buffer
	w := tar.NewWriter(&in)
	for _, h := range []*tar.Header{
		{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o2750, Uid: 7, Gid: 8, ModTime: at},
		{Name: "d/f", Typeflag: tar.TypeReg, Mode: 0o4711, Uid: 5, Gid: 6, ModTime: at, PAXRecords: map[string]string{"SCHILY.xattr.user.note": "hello", "SCHILY.xattr.trusted.evil": "x"}},
		{Name: "d/h", Typeflag: tar.TypeLink, Linkname: "d/f"},
	} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := m.rt.CopyIn(t.Context(), "a", "c", "/tmp", &in); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := m.rt.CopyOut(t.Context(), "a", "c", "/tmp/d", &out); err != nil {
		t.Fatal(err)
	}
	var got []string
	r := tar.NewReader(&out)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if !h.ModTime.Equal(at) {
			t.Errorf("%s has time %v", h.Name, h.ModTime)
		}
		if h.PAXRecords["SCHILY.xattr.trusted.evil"] != "" {
			t.Error("an attribute of the system was set")
		}
		got = append(got, fmt.Sprintf("%c %o %d:%d %s", h.Typeflag, h.Mode, h.Uid, h.Gid, h.PAXRecords["SCHILY.xattr.user.note"]))
	}
	slices.Sort(got)
	if want := []string{"0 4711 5:6 hello", "1 4711 5:6 ", "5 2750 7:8 "}; !slices.Equal(got, want) {
		t.Errorf("comes back as %q, want %q", got, want)
	}
}

// TestShimIsSmallWithStreams: what every pod pays, also with a terminal, an input and
// clients that were attached.
func TestShimIsSmallWithStreams(t *testing.T) {
	const most = 1536 << 10
	m := newMachine(t)
	rt := m.open()
	// Shims share the pages of their program, so a node has several.
	for _, uid := range []runtime.PodUID{"a", "b", "c", "d", "e", "f", "g", "h"} {
		if _, err := rt.RunPod(t.Context(), runtime.PodConfig{UID: uid, Hostname: "h"}); err != nil {
			t.Fatal(err)
		}
	}
	c := runtime.ContainerConfig{Name: "c", Image: m.image, Command: []string{"/bin/sim", "echo"}, Stdin: true}
	if err := rt.RunContainer(t.Context(), "a", c); err != nil {
		t.Fatal(err)
	}
	for range 8 {
		ctx, cancel := context.WithCancel(t.Context())
		in, typed := io.Pipe()
		seen := make(chan struct{}, 1)
		over := make(chan error, 1)
		go func() {
			over <- rt.Attach(ctx, "a", "c", runtime.AttachConfig{Stdin: in, Stdout: writerFunc(func([]byte) {
				select {
				case seen <- struct{}{}:
				default:
				}
			})})
		}()
		if _, err := io.WriteString(typed, strings.Repeat("x", 4096)+"\n"); err != nil {
			t.Fatal(err)
		}
		<-seen
		cancel()
		<-over
	}
	rollup, err := os.ReadFile("/proc/" + strconv.Itoa(m.shimPID("a")) + "/smaps_rollup")
	if err != nil {
		t.Fatal(err)
	}
	pss := keyedKiB(string(rollup), "Pss:") << 10
	t.Logf("PSS of one of eight shims: %d KiB, anonymous %d KiB", pss>>10, keyedKiB(string(rollup), "Anonymous:"))
	if pss == 0 || pss > most {
		t.Errorf("PSS of the shim: %d bytes, at most %d are allowed", pss, most)
	}
}

type writerFunc func([]byte)

func (w writerFunc) Write(p []byte) (int, error) { w(p); return len(p), nil }

func keyedKiB(text, key string) int64 {
	for line := range strings.Lines(text) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == key {
			n, _ := strconv.ParseInt(fields[1], 10, 64)
			return n
		}
	}
	return 0
}

// TestExecLatency measures the runtime's own part.
func TestExecLatency(t *testing.T) {
	m, _ := copyLab(t, "/bin/sim", "forever")
	var took []time.Duration
	for range 60 {
		began := time.Now()
		if exit, err := m.rt.Exec(t.Context(), "a", "c", runtime.ExecConfig{Args: []string{"/bin/busybox", "true"}}); err != nil || exit.Code != 0 {
			t.Fatal(exit, err)
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	t.Logf("exec: p50 %v, p99 %v", took[len(took)/2], took[len(took)*99/100])
	if took[len(took)/2] > 2*time.Second {
		t.Errorf("half of the execs take longer than %v", took[len(took)/2])
	}
}

// TestExecKillsItsGroup: a cancelled exec takes its children along.
func TestExecKillsItsGroup(t *testing.T) {
	m, _ := copyLab(t, "/bin/sim", "forever")
	ctx, cancel := context.WithCancel(t.Context())
	begun := make(chan struct{}, 8)
	over := make(chan error, 1)
	go func() {
		_, err := m.rt.Exec(ctx, "a", "c", runtime.ExecConfig{
			Args:   []string{"/bin/sh", "-c", "/bin/busybox sleep 7777 & echo up; wait"},
			Stdout: writerFunc(func([]byte) { begun <- struct{}{} }),
		})
		over <- err
	}()
	<-begun
	cancel()
	if err := <-over; !errors.Is(err, context.Canceled) {
		t.Errorf("ends with %v", err)
	}
	poll(t, "the children to be gone", func() bool {
		pids, err := m.rt.cgroups.PIDs(filepath.Join(m.opt.CgroupPrefix, podsCgroup, "a", "c-0"))
		return err == nil && len(pids) == 1
	})
}

// TestCopyMapsIDs: in a pod with a user namespace owners are the pod's on both
// ways, and what the pod does not have is refused.
func TestCopyMapsIDs(t *testing.T) {
	m := newMachine(t)
	rt := m.open()
	users := &runtime.IDMapping{HostID: 1 << 20, Size: 1 << 16}
	if _, err := rt.RunPod(t.Context(), runtime.PodConfig{UID: "a", Hostname: "h", Users: users}); err != nil {
		t.Fatal(err)
	}
	c := runtime.ContainerConfig{Name: "c", Image: m.image, Command: []string{"/bin/sim", "forever"}}
	if err := rt.RunContainer(t.Context(), "a", c); err != nil {
		t.Fatal(err)
	}
	archive := func(uid int) *bytes.Buffer {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		err := w.WriteHeader(&tar.Header{Name: "f", Typeflag: tar.TypeReg, Mode: 0o600, Uid: uid, Gid: uid + 1})
		if err := errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
		return &b
	}
	if _, err := rt.CopyIn(t.Context(), "a", "c", "/data", archive(1000)); err != nil {
		t.Fatal(err)
	}
	var seen, out bytes.Buffer
	exit, err := rt.Exec(t.Context(), "a", "c", runtime.ExecConfig{Args: []string{"/bin/busybox", "stat", "-c", "%u:%g", "/data/f"}, Stdout: &seen})
	if err != nil || exit.Code != 0 || seen.String() != "1000:1001\n" {
		t.Errorf("inside, the owner is %q (%+v, %v)", seen.String(), exit, err)
	}
	if err := rt.CopyOut(t.Context(), "a", "c", "/data/f", &out); err != nil {
		t.Fatal(err)
	}
	if h, err := tar.NewReader(&out).Next(); err != nil || h.Uid != 1000 || h.Gid != 1001 {
		t.Errorf("comes back as %+v, %v", h, err)
	}
	if _, err := rt.CopyIn(t.Context(), "a", "c", "/data", archive(1<<16)); err == nil || !strings.Contains(err.Error(), "the pod has the ids") {
		t.Errorf("an owner that the pod does not have: %v", err)
	}
}
