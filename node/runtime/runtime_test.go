package runtime

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestProcessMergesAsKubernetesDoes(t *testing.T) {
	image := Image{Entrypoint: []string{"/entry"}, Cmd: []string{"cmd"}, WorkingDir: "/srv", User: "app:staff"}
	uid, gid := int64(5), int64(6)
	for name, c := range map[string]struct {
		config ContainerConfig
		args   string
		dir    string
		user   string
	}{
		"image alone":         {ContainerConfig{}, "/entry cmd", "/srv", "app:staff"},
		"args":                {ContainerConfig{Args: []string{"a"}}, "/entry a", "/srv", "app:staff"},
		"command drops cmd":   {ContainerConfig{Command: []string{"/c"}}, "/c", "/srv", "app:staff"},
		"command and args":    {ContainerConfig{Command: []string{"/c"}, Args: []string{"a"}}, "/c a", "/srv", "app:staff"},
		"working directory":   {ContainerConfig{WorkingDir: "/w"}, "/entry cmd", "/w", "app:staff"},
		"user drops group":    {ContainerConfig{Security: Security{RunAsUser: &uid}}, "/entry cmd", "/srv", "5"},
		"group alone":         {ContainerConfig{Security: Security{RunAsGroup: &gid}}, "/entry cmd", "/srv", "app:6"},
		"user and group":      {ContainerConfig{Security: Security{RunAsUser: &uid, RunAsGroup: &gid}}, "/entry cmd", "/srv", "5:6"},
		"empty args are none": {ContainerConfig{Args: []string{}}, "/entry cmd", "/srv", "app:staff"},
	} {
		c.config.Image = image
		p, err := c.config.Process("host")
		if err != nil || strings.Join(p.Args, " ") != c.args || p.WorkingDir != c.dir || p.User != c.user {
			t.Errorf("%s: %+v, %v, want %+v", name, p, err, c)
		}
	}
}

func TestMergeEnvKeepsFirstPlaceAndLastValue(t *testing.T) {
	got, err := MergeEnv([]string{"A=1", "B", "A=2"}, []EnvVar{{"C", "x=y"}, {"B", "3"}})
	if diff := cmp.Diff([]string{"A=2", "B=3", "C=x=y"}, got); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	for _, bad := range []EnvVar{{"", "x"}, {"A=B", "x"}, {"A\x00", "x"}, {"A", "\x00"}} {
		if _, err := MergeEnv(nil, []EnvVar{bad}); err == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
}

func TestSignalNames(t *testing.T) {
	for s, want := range map[string]Signal{"SIGTERM": 15, "term": 15, "9": 9, "SIGRTMIN": 34, "RTMIN+3": 37, "SIGSYS": 31, "SIGUSR1": 10} {
		if got, err := ParseSignal(s); got != want || err != nil {
			t.Errorf("%q: %v, %v, want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "0", "65", "SIGNOPE", "RTMIN+31", "RTMIN-1"} {
		if got, err := ParseSignal(s); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v, %v, want ErrInvalid", s, got, err)
		}
	}
	if SIGKILL.String() != "SIGKILL" || Signal(40).String() != "40" {
		t.Errorf("names: %v %v", SIGKILL, Signal(40))
	}
}

// TestChangesAgainstDumbTwin: a set with order, one entry a pod.
func TestChangesAgainstDumbTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := NewChanges()
		var twin []PodUID
		for range rapid.IntRange(0, 30).Draw(t, "steps") {
			uid := PodUID(rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "uid"))
			if rapid.Bool().Draw(t, "add") {
				c.Add(uid)
				if !slices.Contains(twin, uid) {
					twin = append(twin, uid)
				}
				continue
			}
			if len(twin) == 0 {
				continue
			}
			if got, err := c.Next(context.Background()); err != nil || got != twin[0] {
				t.Fatalf("next %s, %v, want %s", got, err, twin[0])
			}
			twin = twin[1:]
		}
	})
}

func TestChangesWakeWhoeverWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewChanges()
		got := make(chan PodUID, 2)
		for range 2 {
			go func() {
				uid, err := c.Next(t.Context())
				if err != nil {
					t.Error(err)
				}
				got <- uid
			}()
		}
		synctest.Wait()
		c.Add("a")
		c.Add("b")
		synctest.Wait()
		if a, b := <-got, <-got; a == b {
			t.Errorf("both were told of %s", a)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := c.Next(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("with a cancelled context: %v", err)
		}
	})
}

func TestAdmitAttempt(t *testing.T) {
	pod := PodState{Containers: []ContainerState{
		{Name: "c", Attempt: 1, Status: ContainerExited, Exit: ExitStatus{Code: 1}}, {Name: "c", Attempt: 2, Status: ContainerRunning},
		{Name: "d", Attempt: 0, Status: ContainerExited, Reason: ReasonStartError},
	}}
	for _, c := range []struct {
		name    string
		attempt int
		start   bool
		err     error
	}{{"c", 0, false, ErrConflict}, {"c", 2, false, nil}, {"c", 3, false, ErrConflict}, {"d", 0, false, ErrStartFailed}, {"d", 1, true, nil}, {"e", 7, true, nil}} {
		start, err := AdmitAttempt(pod, ContainerConfig{Name: c.name, Attempt: c.attempt})
		if start != c.start || !errors.Is(err, c.err) {
			t.Errorf("%s attempt %d: %v, %v, want %v, %v", c.name, c.attempt, start, err, c.start, c.err)
		}
	}
}
