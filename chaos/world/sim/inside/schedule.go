package inside

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"
)

// Step is a fault and when it begins, counted from the beginning of the schedule.
type Step struct {
	At time.Duration
	Fault
}

// Schedule is what goes wrong in a run, in order of time. Steps may overlap. As
// JSON it is a list of steps:
//
//	{"at": "1.5s", "kind": "late", "target": "leader", "for": "3s", "by": "800ms"}
//
// with "n" and "what" where a kind takes them. Names and their meaning do not
// change.
type Schedule []Step

// stepJSON is a Step as it is written. Durations are Go's, to the nanosecond.
type stepJSON struct {
	At     string `json:"at"`
	Kind   Kind   `json:"kind"`
	Target Target `json:"target"`
	For    string `json:"for"`
	By     string `json:"by,omitempty"`
	N      int    `json:"n,omitempty"`
	What   string `json:"what,omitempty"`
}

// MarshalJSON writes a step.
func (s Step) MarshalJSON() ([]byte, error) {
	out := stepJSON{At: s.At.String(), Kind: s.Kind, Target: s.Target, For: s.For.String(), N: s.N, What: s.What}
	if s.By != 0 {
		out.By = s.By.String()
	}
	return json.Marshal(out)
}

// UnmarshalJSON reads a step, and refuses one that cannot be done.
func (s *Step) UnmarshalJSON(text []byte) error {
	var in stepJSON
	if err := strictly(text, &in); err != nil {
		return fmt.Errorf("step of a schedule: %w", err)
	}
	out := Step{Fault: Fault{Kind: in.Kind, Target: in.Target, N: in.N, What: in.What}}
	for _, field := range []struct {
		name, text string
		into       *time.Duration
	}{{"at", in.At, &out.At}, {"for", in.For, &out.For}, {"by", in.By, &out.By}} {
		if field.text == "" {
			continue
		}
		d, err := time.ParseDuration(field.text)
		if err != nil {
			return fmt.Errorf("step of a schedule: %s is %q, expected a duration such as 1.5s: %w", field.name, field.text, err)
		}
		*field.into = d
	}
	if out.At < 0 {
		return fmt.Errorf("step of a schedule: at is %v, at least 0", out.At)
	}
	if err := out.Check(); err != nil {
		return fmt.Errorf("step of a schedule: %w", err)
	}
	*s = out
	return nil
}

// UnmarshalJSON reads a schedule, whose steps have to be in order of time.
func (s *Schedule) UnmarshalJSON(text []byte) error {
	var steps []Step
	if err := json.Unmarshal(text, &steps); err != nil {
		return err
	}
	if len(steps) > maxSteps {
		return fmt.Errorf("a schedule of %d steps, at most %d", len(steps), maxSteps)
	}
	for i := 1; i < len(steps); i++ {
		if steps[i].At < steps[i-1].At {
			return fmt.Errorf("step %d of the schedule is at %v, before step %d at %v", i, steps[i].At, i-1, steps[i-1].At)
		}
	}
	*s = steps
	return nil
}

// strictly refuses fields that nobody would look at.
func strictly(text []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	return d.Decode(into)
}
