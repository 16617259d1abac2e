package faults

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// lifeSettings are there before the pod and stay when it has gone.
const lifeSettings = `apiVersion: v1
kind: ConfigMap
metadata: {name: life}
data: {greeting: hello}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: life}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: local
  resources: {requests: {storage: 16Mi}}
`

// lifePod has a bit of everything. What it does it writes down once on the
// node's disk, in STORY.
const lifePod = `apiVersion: v1
kind: Pod
metadata: {name: life}
spec:
  terminationGracePeriodSeconds: 60
  initContainers:
  - name: first
    image: IMAGE
    securityContext: {runAsUser: 0}
    command: [/busybox, sh, -c, "echo first >>/story/lines; echo first >>/data/lines; echo made >/work/made"]
    volumeMounts: &mounts
    - {name: story, mountPath: /story}
    - {name: data, mountPath: /data}
    - {name: work, mountPath: /work}
    - {name: quick, mountPath: /quick}
    - {name: settings, mountPath: /settings}
  - name: side
    image: IMAGE
    restartPolicy: Always
    securityContext: {runAsUser: 0}
    command: [/busybox, sh, -c, "trap 'echo side ends >>/story/lines; exit 0' TERM; echo side >>/story/lines; echo up >/work/side; /busybox sleep 7100 & wait"]
    startupProbe: {exec: {command: [/busybox, test, -e, /work/side]}, periodSeconds: 1, failureThreshold: 60}
    volumeMounts: *mounts
  containers:
  - name: main
    image: IMAGE
    securityContext: {runAsUser: 0}
    command: [/busybox, sh, -c, "trap 'echo main ends >>/story/lines; exit 0' TERM; echo main >>/story/lines; echo main >>/data/lines; /busybox sleep 7101 & wait"]
    readinessProbe: {exec: {command: [/busybox, test, -e, /settings/greeting, -a, -e, /work/made]}, periodSeconds: 1}
    lifecycle:
      postStart: {exec: {command: [/busybox, sh, -c, "echo start >>/story/hooks; /busybox sleep 0.3"]}}
      preStop: {exec: {command: [/busybox, sh, -c, "echo stop >>/story/hooks; /busybox sleep 0.3"]}}
    volumeMounts: *mounts
  volumes:
  - {name: story, hostPath: {path: STORY, type: DirectoryOrCreate}}
  - {name: data, persistentVolumeClaim: {claimName: life}}
  - {name: work, emptyDir: {}}
  - {name: quick, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
  - {name: settings, configMap: {name: life}}
`

// moment is when the agent is killed: once it has told of an action and a bit of
// time has passed, or once a file is there.
type moment struct {
	action string
	after  time.Duration
	file   string // a pattern
	holds  string // what the file has in it
}

func (m moment) String() string {
	switch {
	case m.file != "":
		return strings.TrimSpace(fmt.Sprintf("as %s appears with %q", filepath.Base(m.file), m.holds))
	case m.after == 0:
		return "at " + m.action
	}
	return fmt.Sprintf("%v after %s", m.after, m.action)
}

// step is an action that the log told of, and when.
type step struct {
	action string
	at     time.Time
}

// ending is what a life led to: while it ran, and when it was over.
type ending struct{ settled, over string }

// life leads a pod's whole life while the agent is killed at moments, each once.
func (n *crashNode) life(image string, want *ending, moments ...moment) (ending, []step) {
	n.Helper()
	story := filepath.Join(n.agent.Host.Dir, "story")
	must(n.T, os.RemoveAll(story))
	killer := &killer{n: n, log: logEnd(n.T, n.agent.Process.LogPath), moments: slices.Clone(moments)}
	stop := background(n.T, killer.run)
	n.apply(strings.NewReplacer("IMAGE", image, "STORY", story).Replace(lifePod))
	got := ending{settled: n.same("the pod to be as without a disturbance", want, func(e *ending) string { return e.settled }, n.settled)}
	n.balsa("delete", "pod", "life", "--wait=false")
	got.over = n.same("nothing to be left", want, func(e *ending) string { return e.over }, n.over)
	stop()
	// With many moments in one life, the act after one may be done before the kill
	// and not told of.
	if missed := len(killer.moments); len(moments) == 1 && missed > 0 || missed > len(moments)/2 {
		n.Errorf("the agent was never killed %v", killer.moments)
	}
	return got, killer.steps
}

// same waits until what is seen is what is wanted, and stays so. Without a wish
// it waits until what is seen stays as it is.
func (n *crashNode) same(what string, want *ending, part func(*ending) string, look func(context.Context) (string, error)) string {
	n.Helper()
	last, since := "", time.Now()
	n.until(what, func(ctx context.Context) error {
		got, err := look(ctx)
		if err != nil {
			last = ""
			return err
		}
		if want != nil && got != part(want) {
			last = ""
			return fmt.Errorf("it differs (-want +got):\n%s", cmp.Diff(strings.Split(part(want), "\n"), strings.Split(got, "\n")))
		}
		if got != last {
			last, since = got, time.Now()
		}
		if want == nil && time.Since(since) < settledFor {
			return errors.New("it has not been so for long")
		}
		return nil
	})
	return last
}

// settled is all that a life amounts to once the pod is ready.
func (n *crashNode) settled(ctx context.Context) (string, error) {
	pods, err := n.pods(ctx, "default")
	if err != nil {
		return "", err
	}
	p := pods["life"]
	if p == nil || !p.ready() {
		return "", fmt.Errorf("it is not ready: %+v", p)
	}
	lines := []string{"phase " + p.Status.Phase}
	for _, c := range p.Status.Conditions {
		lines = append(lines, c.Type+" "+c.Status)
	}
	for _, c := range p.containers() {
		lines = append(lines, fmt.Sprintf("%s restarts %d ready %t: %v, before: %v", c.Name, c.RestartCount, c.Ready, c.State, c.LastState))
	}
	// Probes come and go.
	running := slices.DeleteFunc(processesIn(n.agent.Host), func(p process) bool {
		return strings.Contains(p.args, "busybox test") || p.runs("balsa-runc")
	})
	lines = append(append(lines, names(running)...), n.mounts()...)
	return strings.Join(append(lines, n.story()), "\n"), nil
}

// over is what is left when the pod has gone.
func (n *crashNode) over(ctx context.Context) (string, error) {
	pods, err := n.pods(ctx, "default")
	if err != nil || pods["life"] != nil {
		return "", errors.Join(err, fmt.Errorf("the API has it: %+v", pods["life"]))
	}
	h := n.agent.Host
	lines := append(names(processesIn(h)), n.mounts()...)
	lines = append(lines, cgroupsOf(h)...)
	for _, dir := range []string{"run/pods/pods", "run/network", "run/memory/state/hosts", "run/memory/state/messages", "data/agent/state/pods", "data/agent/volumes", "run/memory/volumes"} {
		entries, err := filepath.Glob(filepath.Join(h.Dir, dir, "*"))
		if err != nil {
			return "", err
		}
		for _, entry := range entries {
			lines = append(lines, anyUID.ReplaceAllString(strings.TrimPrefix(entry, h.Dir), "UID"))
		}
	}
	links, err := h.Run(ctx, "ip", "-o", "link")
	if err != nil {
		return "", err
	}
	lines = append(lines, fmt.Sprintf("%d network devices", strings.Count(links, "\n")))
	return strings.Join(append(lines, n.story()), "\n"), nil
}

func (n *crashNode) mounts() []string {
	var lines []string
	for _, mount := range mountsBelow(n.agent.Host.Dir) {
		lines = append(lines, "mount "+anyUID.ReplaceAllString(mount, "UID"))
	}
	return lines
}

// story is what the containers wrote down, each line once if each ran once. Of
// hooks only that they ran: what was under way begins again.
func (n *crashNode) story() string {
	dir := filepath.Join(n.agent.Host.Dir, "story")
	text, err := os.ReadFile(filepath.Join(dir, "lines"))
	if err != nil {
		return err.Error()
	}
	hooks, err := os.ReadFile(filepath.Join(dir, "hooks"))
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%s%v %v", text, strings.Contains(string(hooks), "start"), strings.Contains(string(hooks), "stop"))
}

// killer watches an agent and kills it when a moment comes, then starts it again.
type killer struct {
	n       *crashNode
	log     *logFrom
	moments []moment // that have not come
	steps   []step
}

func (k *killer) run(ctx context.Context) error {
	return every(ctx, watchEvery, func() (bool, error) {
		for _, line := range k.log.lines() {
			if name, is := action(line, "default/life"); is {
				k.steps = append(k.steps, step{name, time.Now()})
			}
		}
		for i, m := range k.moments {
			if k.came(m) {
				k.moments = slices.Delete(k.moments, i, i+1)
				return false, errors.Join(k.n.agent.Process.Kill(), k.n.agent.Restart())
			}
		}
		return false, nil
	})
}

func (k *killer) came(m moment) bool {
	if m.file != "" {
		return hasFile(m.file, m.holds)
	}
	return slices.ContainsFunc(k.steps, func(s step) bool { return s.action == m.action && time.Since(s.at) >= m.after })
}

// hasFile tells whether a file of a pattern is there that has a text in it.
func hasFile(pattern, holds string) bool {
	files, err := filepath.Glob(pattern)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(files, func(file string) bool {
		if holds == "" {
			return true
		}
		text, err := os.ReadFile(file)
		return err == nil && strings.Contains(string(text), holds)
	})
}

// moments of a life that was not disturbed: at each action, and half-way from it
// to the next one.
func momentsOf(steps []step) (at, between []moment) {
	for i, s := range steps {
		at = append(at, moment{action: s.action})
		if i+1 < len(steps) {
			between = append(between, moment{action: s.action, after: steps[i+1].at.Sub(s.at) / 2})
		}
	}
	return at, between
}

// TestAgentIsKilledAtEveryStepOfARealPod kills the agent at each action of a real
// pod's life. What comes of
// it is what comes of a life that nothing disturbs: the same processes, mounts and
// status, no restart, everything done once, and nothing left in the end.
func TestAgentIsKilledAtEveryStepOfARealPod(t *testing.T) {
	n := withNode(t, "ga")
	n.apply(lifeSettings)
	n.life(boxImage, nil) // makes what stays: the contents of the claim, the image
	want, steps := n.life(boxImage, nil)
	t.Logf("undisturbed it is\n%s\n\nand in the end\n%s", want.settled, want.over)
	if !strings.Contains(want.settled, "main restarts 0 ready true: running") || len(steps) < 10 {
		t.Fatalf("the undisturbed life has only the steps %v", steps)
	}
	at, between := momentsOf(steps)
	hooks := filepath.Join(n.agent.Host.Dir, "story", "hooks")
	lives := [][]moment{at, between, {{file: hooks, holds: "start"}}, {{file: hooks, holds: "stop"}}}
	for _, m := range at {
		lives = append(lives, []moment{m})
	}
	for _, moments := range lives {
		started := time.Now()
		n.life(boxImage, &want, moments...)
		t.Logf("%v: killed %v", time.Since(started).Round(time.Millisecond), moments)
	}
}
