package faults

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/balsa-run/balsa/chaos/stage"
	"github.com/balsa-run/balsa/chaos/world/host"
)

// rollouts is a Deployment of real pods, and a host that asks its service.
type rollouts struct {
	*testing.T
	s     *stage.Stage
	from  *host.Host
	url   string
	words string
}

// good is the manifest that works; each failure is one of its values changed.
var good = map[string]string{"IMAGE": "balsa/echo:1", "LISTEN": ":8080", "PROBE": "healthz"}

// apply writes the manifest with some other values.
func (r *rollouts) apply(other map[string]string) {
	r.Helper()
	data, err := os.ReadFile("testdata/rollouts/app.yaml")
	must(r.T, err)
	text := string(data)
	for name, value := range good {
		if changed, is := other[name]; is {
			value = changed
		}
		text = strings.ReplaceAll(text, "$"+name, value)
	}
	path := filepath.Join(r.s.Lab.Dir, "app.yaml")
	must(r.T, os.WriteFile(path, []byte(text), 0o644))
	_, err = r.s.Balsa(r.Context(), "apply", "-f", path)
	must(r.T, err)
}

func (r *rollouts) status() error {
	_, err := r.s.Balsa(r.Context(), "rollout", "status", "deployment/web", "-n", "roll", "--timeout", "50s")
	return err
}

// deployment is what the test needs of it.
type deployment struct {
	Status struct {
		AvailableReplicas int `json:"availableReplicas"`
		UpdatedReplicas   int `json:"updatedReplicas"`
		FailedRollout     struct {
			Revision        any    `json:"revision"`
			RunningRevision any    `json:"runningRevision"`
			Reason          string `json:"reason"`
			Message         string `json:"message"`
		} `json:"failedRollout"`
	} `json:"status"`
}

func (r *rollouts) deployment() (d deployment) {
	r.Helper()
	must(r.T, r.s.Decode(r.Context(), &d, "get", "deployment", "web", "-n", "roll"))
	return d
}

// greets waits until every pod answers with the words, and nothing else runs.
func (r *rollouts) greets(words string) {
	r.Helper()
	pods, err := r.s.WaitReady(r.Context(), "roll", 2, converge)
	must(r.T, err)
	for _, p := range pods {
		text, err := get(r.Context(), r.from, "http://"+p.Status.PodIP+":8080/")
		must(r.T, err)
		if got, _, _ := strings.Cut(text, ": pod "); got != words {
			r.Errorf("pod %s greets with %q, want %q", p.Metadata.Name, got, words)
		}
	}
}

// asking asks the service until it is stopped; no answer may be missing.
func (r *rollouts) asking() (stop func()) {
	ctx, cancel := context.WithCancel(r.Context())
	ended := make(chan error, 1)
	go func() {
		for asked := 1; ; asked++ {
			_, err := get(ctx, r.from, r.url)
			switch {
			case ctx.Err() != nil && asked > 1:
				ended <- nil
				return
			case err != nil:
				ended <- fmt.Errorf("request %d of the service: %w", asked, err)
				return
			}
		}
	}()
	return func() {
		r.Helper()
		cancel()
		if err := <-ended; err != nil {
			r.Error(err)
		}
	}
}

// takenBack rolls out what cannot work: it fails within its deadline, says why, and
// what ran before runs on and answers throughout.
func (r *rollouts) takenBack(name string, other map[string]string, says ...string) {
	r.Helper()
	stop := r.asking()
	began := time.Now()
	r.apply(other)
	err := r.status()
	took := time.Since(began)
	if err == nil {
		r.Fatalf("%s: the rollout is complete", name)
	}
	d := r.deployment()
	told := d.Status.FailedRollout
	for _, text := range []string{err.Error(), told.Reason + " " + told.Message} {
		for _, word := range says {
			if !strings.Contains(text, word) {
				r.Errorf("%s: %q is not said by %q", name, word, text)
			}
		}
	}
	if took > 40*time.Second {
		r.Errorf("%s: the failure took %v, and the deadline is 12 s", name, took)
	}
	r.Logf("%s: after %v: %s: %s", name, took.Round(100*time.Millisecond), told.Reason, told.Message)
	must(r.T, r.s.Until(r.Context(), converge, name+": what ran before", func(context.Context) error {
		if d := r.deployment(); d.Status.AvailableReplicas != 2 {
			return fmt.Errorf("%d replicas are available", d.Status.AvailableReplicas)
		}
		return nil
	}))
	r.greets(r.words)
	stop()
}

// TestRolloutsForReal: with real pods, a rollout that fails, in each way that one
// does, is taken back by itself with the reason told and no request refused; an edit
// of the configuration rolls out, and its undo brings back the very bytes.
func TestRolloutsForReal(t *testing.T) {
	s, programs := up(t, "ro", 1, 2)
	r := &rollouts{T: t, s: s, from: s.Agents[0].Host, words: "  Grüße, \"world\"\t\\n — tail  "}
	_, err := s.Balsa(t.Context(), "image", "import", programs.Echo)
	must(t, err)
	r.apply(nil)
	must(t, r.status())
	var service serviceSpec
	must(t, s.Decode(t.Context(), &service, "get", "service", "web", "-n", "roll"))
	r.url = "http://" + service.Spec.ClusterIP + "/"
	must(t, s.Until(t.Context(), converge, "the service", func(ctx context.Context) error {
		_, err := get(ctx, r.from, r.url)
		return err
	}))
	r.greets(r.words)

	r.takenBack("a bad image", map[string]string{"IMAGE": "balsa/echo:none"}, "Image", "echo:none")
	r.takenBack("a crash loop", map[string]string{"LISTEN": "nowhere:http:1"}, "CrashLoopBackOff")
	r.takenBack("never ready", map[string]string{"PROBE": "not-there"}, "NeverReady", "404")
	r.apply(nil) // what works again is a rollout that ends well
	must(t, r.status())

	r.edited("Good morning")
	_, err = s.Balsa(t.Context(), "rollout", "undo", "deployment/web", "-n", "roll")
	must(t, err)
	must(t, r.status())
	r.greets(r.words)
}

// edited changes the ConfigMap alone.
func (r *rollouts) edited(words string) {
	r.Helper()
	path := filepath.Join(r.s.Lab.Dir, "words.yaml")
	must(r.T, os.WriteFile(path, []byte("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: words, namespace: roll}\ndata: {greeting: "+words+"}\n"), 0o644))
	_, err := r.s.Balsa(r.Context(), "apply", "-f", path)
	must(r.T, err)
	must(r.T, r.s.Until(r.Context(), converge, "the edit to be rolled out", func(ctx context.Context) error {
		text, err := get(ctx, r.from, r.url)
		if err == nil && !strings.HasPrefix(text, words+": ") {
			err = errors.New("an older pod answers: " + text)
		}
		return err
	}))
	must(r.T, r.status())
	r.greets(words)
}
