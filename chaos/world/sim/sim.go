package sim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/experimental"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
	"github.com/tetratelabs/wazero/sys"
	"golang.org/x/sys/unix"
)

// Limits of every run. A program that meets one is ended.
const (
	DefaultMemoryBytes  = 1 << 30
	DefaultVirtualLimit = time.Hour
	DefaultWallLimit    = 5 * time.Minute
	DefaultGrace        = 10 * time.Second
	DefaultOutputBytes  = 64 << 20
	stderrBytes         = 64 << 10 // kept of what a dying program says; the first part

	pageBytes = 64 << 10

	// guestDebug: goroutines begin with a stack of the size that they needed of late,
	// and copy it less often. Copying it was 5% of a run.
	guestDebug = "adaptivestackstart=1"
)

// Why a run was ended from outside. Of these only ErrWallLimit may strike at
// another place when the run is repeated.
var (
	ErrVirtualLimit = errors.New("the program's time is up")
	ErrWallLimit    = errors.New("the program took too long")
	ErrOutputLimit  = errors.New("the program printed too much")
	// ErrStuck comes with ErrWallLimit, or with the context's error: the program did
	// not even notice that it was over. It still runs, and does until the process ends.
	ErrStuck = errors.New("the program computes without end")
)

// Machine is a compiled program, ready to run any number of times, also at once.
type Machine struct {
	runtime wazero.Runtime
	module  wazero.CompiledModule
	grace   time.Duration
	stuck   held
}

// Config bounds and speeds up a Machine. The zero value is usable.
type Config struct {
	// MemoryBytes bounds the memory of one run; 0: DefaultMemoryBytes.
	MemoryBytes int64
	// Interruptible lets the wall limit and the context end also a program that
	// neither waits nor looks at the clock. It costs half the speed. Programs
	// that do either are ended without it; of others Run tells ErrStuck.
	Interruptible bool
	// Grace is what a run has after its wall limit to ask the host for something,
	// and be told that it is over; 0: DefaultGrace.
	Grace time.Duration
	// CacheDir keeps the newest compiled programs between processes; empty: none
	// are kept.
	CacheDir string
}

// New compiles a program, which takes seconds for a large one. Close the Machine.
func New(ctx context.Context, wasm []byte, cfg Config) (*Machine, error) {
	if cfg.MemoryBytes == 0 {
		cfg.MemoryBytes = DefaultMemoryBytes
	}
	config := wazero.NewRuntimeConfig().WithCloseOnContextDone(cfg.Interruptible).WithMemoryLimitPages(uint32(cfg.MemoryBytes / pageBytes))
	if cfg.CacheDir != "" {
		cache, err := wazero.NewCompilationCacheWithDir(cfg.CacheDir)
		if err != nil {
			return nil, fmt.Errorf("sim: cache of compiled programs in %s: %w", cfg.CacheDir, err)
		}
		config = config.WithCompilationCache(cache)
	}
	rt := wazero.NewRuntimeWithConfig(ctx, config)
	if _, err := wasi_snapshot_preview1.Instantiate(ctx, rt); err != nil {
		return nil, errors.Join(fmt.Errorf("sim: WASI: %w", err), rt.Close(ctx))
	}
	if err := instantiateHost(ctx, rt); err != nil {
		return nil, errors.Join(fmt.Errorf("sim: host functions: %w", err), rt.Close(ctx))
	}
	module, err := rt.CompileModule(experimental.WithCompilationWorkers(ctx, runtime.GOMAXPROCS(0)), wasm)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("sim: compile the program: %w", err), rt.Close(ctx))
	}
	if cfg.CacheDir != "" {
		if err := trimCache(cfg.CacheDir); err != nil {
			return nil, errors.Join(err, rt.Close(ctx))
		}
	}
	return &Machine{runtime: rt, module: module, grace: cmp.Or(cfg.Grace, DefaultGrace)}, nil
}

// Close frees the compiled program. While a run is stuck that would take away the
// code that it executes: then it frees nothing, and says so.
func (m *Machine) Close(ctx context.Context) error {
	if m.stuck.any() {
		return fmt.Errorf("sim: close: a run has not ended: %w", ErrStuck)
	}
	return m.runtime.Close(ctx)
}

// Options are one run. Seed and Args decide everything that happens in it; the
// limits only how far it goes.
type Options struct {
	Seed uint64
	// Args follow the program's name and -seed=<Seed>, which come first.
	Args []string
	// VirtualLimit bounds the program's own time, WallLimit ours; 0: the
	// defaults.
	VirtualLimit, WallLimit time.Duration
	// OutputBytes bounds what it prints; 0: DefaultOutputBytes.
	OutputBytes int
	// History is given what the program records; nil: that is dropped. It changes
	// nothing in the run.
	History io.Writer
}

func (o Options) withDefaults() Options {
	if o.VirtualLimit == 0 {
		o.VirtualLimit = DefaultVirtualLimit
	}
	if o.WallLimit == 0 {
		o.WallLimit = DefaultWallLimit
	}
	if o.OutputBytes == 0 {
		o.OutputBytes = DefaultOutputBytes
	}
	return o
}

// Result is what a run came to.
type Result struct {
	// Digest is over everything that was printed to standard output, the exit
	// code and the time at the end.
	Digest string
	// Lines are the lines of standard output, Stderr the beginning of what a
	// dying program said.
	Lines  []string
	Stderr string
	// ExitCode is the program's; -1 when it was ended from outside.
	ExitCode                    int
	VirtualElapsed, WallElapsed time.Duration
	// Processor is the processor time that it took, which says more than WallElapsed
	// of a machine that does other things as well.
	Processor time.Duration
}

// Run runs the program once. The error tells that it could not be run or was
// ended by a limit: match ErrVirtualLimit, ErrWallLimit, ErrOutputLimit, or the
// context's error. The Result is as far as it came. A program that ends by
// itself is no error, whatever its exit code.
func (m *Machine) Run(ctx context.Context, o Options) (Result, error) {
	o = o.withDefaults()
	bounded, cancel := context.WithTimeoutCause(ctx, o.WallLimit, ErrWallLimit)
	defer cancel()
	r := &run{clock: clock{now: epoch, limit: epoch + int64(o.VirtualLimit), interrupted: bounded.Done()}, out: output{limit: o.OutputBytes}}
	started := time.Now()
	records := &recorder{to: o.History}
	inside := experimental.WithMemoryAllocator(context.WithValue(bounded, recorderKey{}, records), experimental.MemoryAllocatorFunc(reserve))
	var processor time.Duration
	var err error
	if !guarded(bounded.Done(), m.grace, func() { processor, err = m.execute(inside, r.config(o)) }) {
		m.stuck.add()
		return Result{Lines: r.out.lines(), ExitCode: -1, WallElapsed: time.Since(started)},
			fmt.Errorf("sim: seed %d: %w: %w", o.Seed, context.Cause(bounded), ErrStuck)
	}
	code, err := r.conclude(bounded, err)
	if err = errors.Join(err, records.err); err != nil {
		err = fmt.Errorf("sim: seed %d after %v of its time: %w", o.Seed, r.clock.elapsed(), err)
	}
	return Result{
		Digest: r.out.digest(code, r.clock.elapsed()), Lines: r.out.lines(), Stderr: string(r.err.kept),
		ExitCode: code, VirtualElapsed: r.clock.elapsed(), WallElapsed: time.Since(started), Processor: processor,
	}, err
}

// execute has a thread to itself, so that its processor time is that of the run.
func (m *Machine) execute(ctx context.Context, config wazero.ModuleConfig) (processor time.Duration, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := threadTime()
	instance, err := m.runtime.InstantiateModule(ctx, m.module, config)
	if instance != nil {
		err = errors.Join(err, instance.Close(context.WithoutCancel(ctx)))
	}
	return threadTime() - before, err
}

// threadTime is the processor time of this thread; nothing where that is not known.
func threadTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

// run is what one run sees of the world.
type run struct {
	clock clock
	out   output
	err   head
}

func (r *run) config(o Options) wazero.ModuleConfig {
	args := append([]string{"guest", fmt.Sprintf("-seed=%d", o.Seed)}, o.Args...)
	return wazero.NewModuleConfig().WithName("").WithArgs(args...).
		WithEnv("GODEBUG", guestDebug).
		WithStdout(&r.out).WithStderr(&r.err).
		WithRandSource(random(o.Seed)).
		WithWalltime(r.clock.walltime, sys.ClockResolution(1)).
		WithNanotime(r.clock.nanotime, sys.ClockResolution(1)).
		WithNanosleep(r.clock.sleep).
		WithOsyield(r.clock.yield)
}

// random is the source of the program's random bytes: its runtime takes the
// seeds of maps, of select and of math/rand from it, and crypto/rand everything.
func random(seed uint64) *rand.ChaCha8 {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	return rand.NewChaCha8(key)
}

// conclude tells how the program ended.
func (r *run) conclude(ctx context.Context, err error) (code int, because error) {
	var exit *sys.ExitError
	switch {
	case r.clock.over:
		return -1, ErrVirtualLimit
	case r.out.over:
		return -1, ErrOutputLimit
	case ctx.Err() != nil:
		return -1, context.Cause(ctx)
	case err == nil:
		return 0, nil
	case errors.As(err, &exit):
		return int(exit.ExitCode()), nil
	}
	return -1, err
}
