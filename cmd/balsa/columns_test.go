package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/internal/codec"
)

func theTime() time.Time { return time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC) }

// read makes a message of YAML with a status, which manifests may not have.
func read[M proto.Message](t *testing.T, text string, m M) M {
	t.Helper()
	trees, err := codec.ParseYAML([]byte(text), 1<<20)
	must(t, err)
	if len(trees) != 1 {
		t.Fatalf("%d documents", len(trees))
	}
	must(t, codec.Options{}.Decode(trees[0], m))
	return m
}

// TestPodSummary holds each rule to what kubectl shows of the same pod.
func TestPodSummary(t *testing.T) {
	const running, done = "state: {running: {}}, ready: true, started: true", "state: {terminated: {exitCode: 0, reason: Completed}}"
	initialised := "conditions: [{type: Initialized, status: 'True'}, {type: Ready, status: 'True'}]"
	notReady := "conditions: [{type: Initialized, status: 'True'}, {type: Ready, status: 'False'}]"
	for _, c := range []struct {
		about, meta, init, status string
		want                      podSummary
	}{
		{"placed nowhere", "", "", "phase: Pending", podSummary{"0/2", "Pending", "0"}},
		{"being made", "", "", "phase: Pending, containerStatuses: [{name: a, state: {waiting: {reason: ContainerCreating}}}, {name: b, state: {waiting: {reason: ContainerCreating}}}]", podSummary{"0/2", "ContainerCreating", "0"}},
		{"runs", "", "", "phase: Running, " + initialised + ", containerStatuses: [{name: a, " + running + "}, {name: b, " + running + "}]", podSummary{"2/2", "Running", "0"}},
		{"one is not ready", "", "", "phase: Running, " + notReady + ", containerStatuses: [{name: a, " + running + "}, {name: b, state: {running: {}}, ready: false}]", podSummary{"1/2", "Running", "0"}},
		{"crashes", "", "", "phase: Running, " + notReady + ", containerStatuses: [{name: a, " + running + "}, {name: b, restartCount: 3, state: {waiting: {reason: CrashLoopBackOff}}, lastState: {terminated: {exitCode: 1, finishedAt: '2026-11-22T11:55:00Z'}}}]", podSummary{"1/2", "CrashLoopBackOff", "3 (5m0s ago)"}},
		{"out of memory", "", "", "phase: Running, " + notReady + ", containerStatuses: [{name: a, state: {terminated: {exitCode: 137, reason: OOMKilled}}}, {name: b, " + running + "}]", podSummary{"1/2", "OOMKilled", "0"}},
		{"one completed, ready", "", "", "phase: Running, " + initialised + ", containerStatuses: [{name: a, " + done + "}, {name: b, " + running + "}]", podSummary{"1/2", "Running", "0"}},
		{"one completed, not ready", "", "", "phase: Running, " + notReady + ", containerStatuses: [{name: a, " + done + "}, {name: b, " + running + "}]", podSummary{"1/2", "NotReady", "0"}},
		{"completed", "", "", "phase: Succeeded, " + initialised + ", containerStatuses: [{name: a, " + done + "}, {name: b, " + done + "}]", podSummary{"0/2", "Completed", "0"}},
		{"failed by exit code", "", "", "phase: Failed, " + notReady + ", containerStatuses: [{name: a, state: {terminated: {exitCode: 3}}}, {name: b, " + done + "}]", podSummary{"0/2", "ExitCode:3", "0"}},
		{"failed by signal", "", "", "phase: Failed, " + notReady + ", containerStatuses: [{name: a, state: {terminated: {signal: 9, exitCode: 137}}}, {name: b, " + done + "}]", podSummary{"0/2", "Signal:9", "0"}},
		{"its node is lost", "", "", "phase: Running, conditions: [{type: Ready, status: 'False', reason: NodeLost}], containerStatuses: [{name: a, " + running + "}, {name: b, " + running + "}]", podSummary{"0/2", "NodeLost", "0"}},
		{"evicted", "", "", "phase: Failed, reason: Evicted, containerStatuses: [{name: a, state: {terminated: {exitCode: 137, reason: Error}}}]", podSummary{"0/2", "Evicted", "0"}},
		{"ends", "deletionTimestamp: '2026-11-22T11:59:50Z'", "", "phase: Running, " + initialised + ", containerStatuses: [{name: a, " + running + "}, {name: b, " + running + "}]", podSummary{"2/2", "Terminating", "0"}},
		{"has ended and is deleted", "deletionTimestamp: '2026-11-22T11:59:50Z'", "", "phase: Succeeded, containerStatuses: [{name: a, " + done + "}, {name: b, " + done + "}]", podSummary{"0/2", "Completed", "0"}},
		{"second init container", "", "{name: i, image: x}, {name: j, image: x}", "phase: Pending, initContainerStatuses: [{name: i, " + done + "}, {name: j, state: {running: {}}}]", podSummary{"0/2", "Init:1/2", "0"}},
		{"init container waits its turn", "", "{name: i, image: x}", "phase: Pending, initContainerStatuses: [{name: i, state: {waiting: {reason: PodInitializing}}}]", podSummary{"0/2", "Init:0/1", "0"}},
		{"init container crashes", "", "{name: i, image: x}", "phase: Pending, initContainerStatuses: [{name: i, restartCount: 2, state: {waiting: {reason: CrashLoopBackOff}}}]", podSummary{"0/2", "Init:CrashLoopBackOff", "2"}},
		{"init container failed", "", "{name: i, image: x}", "phase: Failed, initContainerStatuses: [{name: i, state: {terminated: {exitCode: 4}}}]", podSummary{"0/2", "Init:ExitCode:4", "0"}},
		{"initialised", "", "{name: i, image: x}", "phase: Pending, " + notReady + ", initContainerStatuses: [{name: i, restartCount: 2, " + done + "}], containerStatuses: [{name: a, state: {waiting: {reason: PodInitializing}}}]", podSummary{"0/2", "PodInitializing", "0"}},
		{"sidecar runs", "", "{name: i, image: x, restartPolicy: Always}, {name: j, image: x}", "phase: Pending, initContainerStatuses: [{name: i, " + running + "}, {name: j, state: {running: {}}}]", podSummary{"1/3", "Init:1/2", "0"}},
		{"sidecar counts", "", "{name: i, image: x, restartPolicy: Always}", "phase: Running, " + initialised + ", initContainerStatuses: [{name: i, restartCount: 1, lastState: {terminated: {finishedAt: '2026-11-22T11:59:00Z'}}, " + running + "}], containerStatuses: [{name: a, " + running + "}, {name: b, " + running + "}]", podSummary{"3/3", "Running", "1 (60s ago)"}},
	} {
		text := fmt.Sprintf("metadata: {name: p, %s}\nspec: {initContainers: [%s], containers: [{name: a, image: x}, {name: b, image: x}]}\nstatus: {%s}\n", c.meta, c.init, c.status)
		have := summarise(read(t, text, &balsav1.Pod{}), theTime())
		if diff := cmp.Diff(c.want, have, cmp.AllowUnexported(podSummary{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.about, diff)
		}
	}
}

// TestDescribePod prints a pod that has some of everything.
func TestDescribePod(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("testdata", "describe", "pod.yaml"))
	must(t, err)
	var out strings.Builder
	s := newSheet(&out)
	s.pod(read(t, string(text), &balsav1.Pod{}), theTime())
	must(t, s.flush())
	for line := range strings.Lines(out.String()) {
		if strings.HasSuffix(line, " \n") {
			t.Errorf("%q ends with a space", line)
		}
	}
	path := filepath.Join("testdata", "describe", "pod.golden")
	if *update {
		must(t, os.WriteFile(path, []byte(out.String()), 0o644))
		return
	}
	want, err := os.ReadFile(path)
	must(t, err)
	if diff := cmp.Diff(string(want), out.String()); diff != "" {
		t.Errorf("%s differs (-want +got), go test -update rewrites it:\n%s", path, diff)
	}
}
