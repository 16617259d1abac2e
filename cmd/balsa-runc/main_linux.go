//go:build linux && cgo

// Command balsa-runc is the only program that links libcontainer. The shim
// runs it once for each container, the agent once for each exec; it does one
// thing and exits, so nothing of it stays in memory.
//
//	balsa-runc run DIR      start the container that DIR/config.json describes
//	balsa-runc exec DIR     run a further process in it
//	balsa-runc delete DIR   kill it and remove its cgroup and state
//	balsa-runc init         what libcontainer itself executes
//
// The working directory is the pod's, DIR is containers/ID. Reports go to the
// descriptors that package runcwire names, never to the container's streams.
// It refuses to read anything but DIR/config.json: every policy is in there,
// except for what this machine cannot do, which is clamped (see clamp.go).
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	_ "github.com/opencontainers/cgroups/devices"
	"github.com/opencontainers/runc/libcontainer"
	_ "github.com/opencontainers/runc/libcontainer/nsenter"

	"github.com/balsa-run/balsa/internal/runcwire"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "init" {
		becomeProgram() // does not return
	}
	if len(os.Args) != 3 {
		fail(os.Stderr, errors.New("usage: balsa-runc run|exec|delete DIR"))
	}
	dir := os.Args[2]
	switch os.Args[1] {
	case "run":
		report := os.NewFile(runcwire.RunReportFD, "report")
		if err := runContainer(dir, report); err != nil {
			fail(report, err)
		}
	case "exec":
		report := os.NewFile(runcwire.ExecReportFD, "report")
		if err := execInContainer(dir, os.NewFile(runcwire.ExecControlFD, "control"), report); err != nil {
			fail(report, err)
		}
	case "delete":
		if err := deleteContainer(dir); err != nil {
			fail(os.Stderr, err)
		}
	default:
		fail(os.Stderr, fmt.Errorf("subcommand %q: want run, exec or delete", os.Args[1]))
	}
}

// becomeProgram runs in a process that libcontainer has made: that of an exec waits
// until the agent knows it.
func becomeProgram() {
	runtime.LockOSThread() // what libcontainer changes is this thread's
	if os.Getenv("_LIBCONTAINER_INITTYPE") == "setns" {
		if err := awaitGo(); err != nil {
			fail(os.Stderr, err)
		}
	}
	libcontainer.Init()
}

// fail reports an error and exits.
func fail(to *os.File, err error) {
	text := runcwire.ErrorReport(err)
	if to == os.Stderr {
		text = "balsa-runc: " + err.Error() + "\n"
	}
	_, _ = to.WriteString(text)
	os.Exit(1)
}

// stateRoot is libcontainer's directory for this pod.
func stateRoot() (string, error) {
	root, err := filepath.Abs(runcwire.StateRoot)
	if err != nil {
		return "", fmt.Errorf("state root: %w", err)
	}
	return root, nil
}

func load(dir string) (*libcontainer.Container, error) {
	root, err := stateRoot()
	if err != nil {
		return nil, err
	}
	c, err := libcontainer.Load(root, filepath.Base(dir))
	if err != nil {
		return nil, fmt.Errorf("load container %s: %w", dir, err)
	}
	return c, nil
}

// deleteContainer also succeeds when there is nothing left to delete.
func deleteContainer(dir string) error {
	c, err := load(dir)
	if errors.Is(err, libcontainer.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := c.Destroy(); err != nil {
		return fmt.Errorf("delete container %s: %w", dir, err)
	}
	return nil
}
