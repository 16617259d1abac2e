package inside

import (
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestScheduleJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := Generate(rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1)), time.Minute)
		text, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var got Schedule
		if err := json.Unmarshal(text, &got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("after a round (-want +got):\n%s", diff)
		}
	})
}

// The names in a schedule are kept: files that were written once are read for ever.
func TestScheduleJSONNames(t *testing.T) {
	schedule := Schedule{
		{At: 1500 * time.Millisecond, Fault: Fault{Kind: Late, Target: Leader, For: 3 * time.Second, By: 800 * time.Millisecond}},
		{At: 2 * time.Second, Fault: Fault{Kind: CrashAfter, Target: "s2", For: time.Second, N: 3, What: "vote"}},
	}
	const want = `[{"at":"1.5s","kind":"late","target":"leader","for":"3s","by":"800ms"},` +
		`{"at":"2s","kind":"crash after write","target":"s2","for":"1s","n":3,"what":"vote"}]`
	if got, err := json.Marshal(schedule); err != nil || string(got) != want {
		t.Errorf("written as\n%s, expected\n%s (%v)", got, want, err)
	}
}

func TestScheduleJSONThatIsRefused(t *testing.T) {
	for text, want := range map[string]string{
		`[{"at":"1s","kind":"earthquake","target":"any","for":"1s"}]`:                                                                                   "earthquake",
		`[{"at":"1s","kind":"kill","for":"1s"}]`:                                                                                                        "target is missing",
		`[{"at":"1s","kind":"kill","target":"any","for":"1s","by":"1s"}]`:                                                                               "takes none",
		`[{"at":"1s","kind":"late","target":"any","for":"1s"}]`:                                                                                         "by is 0s",
		`[{"at":"1s","kind":"late","target":"any","for":"1s","by":"-1s"}]`:                                                                              "by is -1s",
		`[{"at":"1s","kind":"flap","target":"any","for":"1s","by":"1ns"}]`:                                                                              "at least 10ms",
		`[{"at":"1s","kind":"clock drift","target":"any","for":"1s","by":"1s"}]`:                                                                        "at most 100ms",
		`[{"at":"1s","kind":"slow disk","target":"any","for":"1s","by":"1m"}]`:                                                                          "gives up",
		`[{"at":"1s","kind":"compact","target":"any","for":"1s","by":"-1ns"}]`:                                                                          "at least 0",
		`[{"at":"1s","kind":"crash after write","target":"any","for":"1s"}]`:                                                                            "n is 0",
		`[{"at":"1s","kind":"kill","target":"any","for":"1s","n":1}]`:                                                                                   "n is 1",
		`[{"at":"1s","kind":"kill","target":"any","for":"1s","what":"vote"}]`:                                                                           "what is",
		`[{"at":"soon","kind":"kill","target":"any","for":"1s"}]`:                                                                                       "at is \"soon\"",
		`[{"at":"-1s","kind":"kill","target":"any","for":"1s"}]`:                                                                                        "at is -1s",
		`[{"at":"1s","kind":"kill","target":"any","for":"99h"}]`:                                                                                        "for is 99h",
		`[{"at":"1s","kind":"kill","target":"any","for":"1s","why":"so"}]`:                                                                              "why",
		`[{"at":"2s","kind":"kill","target":"any","for":"1s"},{"at":"1s","kind":"kill","target":"any","for":"1s"}]`:                                     "before step 0",
		`[` + strings.Repeat(`{"at":"2s","kind":"kill","target":"any","for":"1s"},`, maxSteps) + `{"at":"2s","kind":"kill","target":"any","for":"1s"}]`: "at most",
		`{}`: "object",
	} {
		var s Schedule
		if err := json.Unmarshal([]byte(text), &s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.120s: %v, expected %q in it", text, err, want)
		}
	}
}

func TestGenerateDrawsEveryKind(t *testing.T) {
	drawn := map[Kind]int{}
	for seed := range uint64(300) {
		for _, step := range Generate(rand.New(rand.NewPCG(seed, 2)), time.Minute) {
			drawn[step.Kind]++
		}
	}
	for _, kind := range Kinds() {
		if (drawn[kind] > 0) != (DefaultWeights()[kind] > 0) {
			t.Errorf("%s was drawn %d times, its weight is %d", kind, drawn[kind], DefaultWeights()[kind])
		}
	}
	only := GenerateWith(rand.New(rand.NewPCG(1, 2)), time.Minute, Weights{FlipEntry: 1})
	if n := len(only); n < fewest {
		t.Errorf("%d faults in a minute", n)
	}
	found := false
	for _, step := range only {
		found = found || step.Kind == FlipEntry
	}
	if !found {
		t.Error("the only kind with a weight was not drawn")
	}
}

func TestScripts(t *testing.T) {
	for _, script := range Scripts() {
		text, err := json.Marshal(script.Schedule)
		if err != nil {
			t.Fatal(err)
		}
		var again Schedule
		if err := json.Unmarshal(text, &again); err != nil {
			t.Errorf("%s: %v", script.Name, err)
		}
		if found, ok := ScriptNamed(script.Name); !ok || found.About != script.About || script.Servers < 3 {
			t.Errorf("%s is not found, or not whole", script.Name)
		}
	}
	if _, ok := ScriptNamed("nothing"); ok {
		t.Error("a script that does not exist was found")
	}
}
