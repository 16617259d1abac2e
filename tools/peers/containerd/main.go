// Containerd does with a containerd what the benchmarks do with a node of Balsa:
// it starts containers, runs programs in them and pulls an image, each timed in
// this one process, as a client library's user sees it. Its report is a line of
// JSON.
//
//	containerd -socket FILE -out FILE import ARCHIVE
//	containerd -socket FILE -out FILE [-count N] [-parallel N] start IMAGE
//	containerd -socket FILE -out FILE [-count N] hold IMAGE      until SIGTERM
//	containerd -socket FILE -out FILE [-count N] exec IMAGE PROGRAM [ARG...]
//	containerd -socket FILE -out FILE pull IMAGE
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd"
	"github.com/containerd/containerd/cio"
	"github.com/containerd/containerd/contrib/seccomp"
	"github.com/containerd/containerd/errdefs"
	"github.com/containerd/containerd/namespaces"
	"github.com/containerd/containerd/oci"
)

// goneFor bounds the wait for a container's end.
const goneFor = 30 * time.Second

// report is what is printed: times in milliseconds.
type report struct {
	TookMS []float64 `json:"tookMS"`
	// WallMS is how long each round of parallel starts took in all.
	WallMS []float64 `json:"wallMS,omitempty"`
}

type tool struct {
	client   *containerd.Client
	logs     string
	count    int
	parallel int
	out      string
	args     []string
	// namespace is containerd's, for everything that is made here, and the name of
	// its cgroup.
	namespace string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "containerd client:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	t := &tool{}
	var args string
	socket := flag.String("socket", "", "of containerd")
	flag.StringVar(&t.out, "out", "", "file for the report")
	flag.StringVar(&t.logs, "logs", os.TempDir(), "folder of the containers' output")
	flag.IntVar(&t.count, "count", 1, "how often")
	flag.StringVar(&t.namespace, "namespace", "bench", "of containerd")
	flag.StringVar(&args, "args", "", "of the image's program, instead of its own")
	flag.IntVar(&t.parallel, "parallel", 1, "how many at once, in each round")
	flag.Parse()
	t.args = strings.Fields(args)
	if flag.NArg() < 2 {
		return errors.New("usage: containerd FLAGS import|start|hold|exec|pull WHAT")
	}
	if t.client, err = containerd.New(*socket, containerd.WithDefaultNamespace(t.namespace)); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.client.Close()) }()
	what := flag.Arg(1)
	ctx = namespaces.WithNamespace(ctx, t.namespace)
	switch flag.Arg(0) {
	case "import":
		return t.load(ctx, what)
	case "start":
		return t.start(ctx, what)
	case "hold":
		return t.hold(ctx, what)
	case "exec":
		return t.exec(ctx, what, flag.Args()[2:])
	case "pull":
		return t.pull(ctx, what)
	}
	return fmt.Errorf("%s is not known", flag.Arg(0))
}

func (t *tool) tell(r report) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return os.WriteFile(t.out, append(text, '\n'), 0o644)
}

func since(began time.Time) float64 { return float64(time.Since(began)) / float64(time.Millisecond) }

// load imports an archive and unpacks it.
func (t *tool) load(ctx context.Context, archive string) error {
	file, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer file.Close()
	images, err := t.client.Import(ctx, file)
	if err != nil {
		return err
	}
	for _, image := range images {
		if err := containerd.NewImage(t.client, image).Unpack(ctx, containerd.DefaultSnapshotter); err != nil {
			return err
		}
	}
	return nil
}

// running is a container whose program runs.
type running struct {
	container containerd.Container
	task      containerd.Task
	exit      <-chan containerd.ExitStatus
}

// one brings a container from nothing to running: snapshot, specification,
// namespaces with an empty network, the default seccomp filter, shim, runc.
func (t *tool) one(ctx context.Context, image containerd.Image, id string) (*running, error) {
	r := &running{}
	var err error
	r.container, err = t.client.NewContainer(ctx, id, containerd.WithNewSnapshot(id, image), containerd.WithNewSpec(oci.WithImageConfigArgs(image, t.args), seccomp.WithDefaultProfile()))
	if err != nil {
		return r, err
	}
	if r.task, err = r.container.NewTask(ctx, cio.LogFile(t.logs+"/"+id+".log")); err != nil {
		return r, err
	}
	if r.exit, err = r.task.Wait(ctx); err != nil {
		return r, err
	}
	return r, r.task.Start(ctx)
}

// end removes what one made, also when it failed half way.
func (r *running) end(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), goneFor)
	defer cancel()
	var failed []error
	if r.task != nil {
		if err := r.task.Kill(ctx, syscall.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
			failed = append(failed, err)
		}
		if r.exit != nil {
			select {
			case <-r.exit:
			case <-ctx.Done():
			}
		}
		_, err := r.task.Delete(ctx, containerd.WithProcessKill)
		failed = append(failed, err)
	}
	if r.container != nil {
		failed = append(failed, r.container.Delete(ctx, containerd.WithSnapshotCleanup))
	}
	return errors.Join(failed...)
}

// start takes rounds of parallel starts, and removes each round's containers
// before the next.
func (t *tool) start(ctx context.Context, name string) error {
	image, err := t.client.GetImage(ctx, name)
	if err != nil {
		return err
	}
	var r report
	for round := range t.count {
		began := time.Now()
		all, took, err := t.round(ctx, image, round)
		r.WallMS = append(r.WallMS, since(began))
		for _, each := range all {
			err = errors.Join(err, each.end(ctx))
		}
		if err != nil {
			return err
		}
		r.TookMS = append(r.TookMS, took...)
	}
	return t.tell(r)
}

func (t *tool) round(ctx context.Context, image containerd.Image, round int) ([]*running, []float64, error) {
	all, took, failed := make([]*running, t.parallel), make([]float64, t.parallel), make([]error, t.parallel)
	var starts sync.WaitGroup
	for i := range t.parallel {
		starts.Go(func() {
			began := time.Now()
			all[i], failed[i] = t.one(ctx, image, fmt.Sprintf("b%d-%d-%d", os.Getpid(), round, i))
			took[i] = since(began)
		})
	}
	starts.Wait()
	return all, took, errors.Join(failed...)
}

// hold keeps containers running; the report says that they do.
func (t *tool) hold(ctx context.Context, name string) (err error) {
	image, err := t.client.GetImage(ctx, name)
	if err != nil {
		return err
	}
	t.parallel = t.count
	all, took, err := t.round(ctx, image, 0)
	defer func() {
		for _, each := range all {
			err = errors.Join(err, each.end(ctx))
		}
	}()
	if err != nil {
		return err
	}
	if err := t.tell(report{TookMS: took}); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// exec runs a program again and again in one container, each to its end.
func (t *tool) exec(ctx context.Context, name string, args []string) (err error) {
	image, err := t.client.GetImage(ctx, name)
	if err != nil {
		return err
	}
	container, err := t.one(ctx, image, fmt.Sprintf("b%d-exec", os.Getpid()))
	defer func() { err = errors.Join(err, container.end(ctx)) }()
	if err != nil {
		return err
	}
	spec, err := container.container.Spec(ctx)
	if err != nil {
		return err
	}
	process := *spec.Process
	process.Args = args
	var r report
	for i := range t.count {
		began := time.Now()
		p, err := container.task.Exec(ctx, fmt.Sprintf("e%d", i), &process, cio.NewCreator(cio.WithStreams(nil, discard{}, discard{})))
		if err != nil {
			return err
		}
		exit, err := p.Wait(ctx)
		if err != nil {
			return err
		}
		if err := p.Start(ctx); err != nil {
			return err
		}
		if status := <-exit; status.ExitCode() != 0 {
			return fmt.Errorf("%v ended with exit code %d", args, status.ExitCode())
		}
		r.TookMS = append(r.TookMS, since(began))
		if _, err := p.Delete(ctx); err != nil {
			return err
		}
	}
	return t.tell(r)
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// pull brings an image and unpacks it.
func (t *tool) pull(ctx context.Context, name string) error {
	began := time.Now()
	if _, err := t.client.Pull(ctx, name, containerd.WithPullUnpack); err != nil {
		return err
	}
	return t.tell(report{TookMS: []float64{since(began)}})
}
