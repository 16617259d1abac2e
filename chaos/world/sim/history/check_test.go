package history_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/balsa-run/balsa/chaos/world/sim/history"
)

// cluster is a database that does everything right, one request after another;
// only the answers overlap.
type cluster struct {
	revision int64
	keys     map[string]history.Change
	changes  []history.Change
	ops      []history.Op
	now      time.Duration
	written  int
}

func newCluster() *cluster {
	return &cluster{revision: 3, keys: map[string]history.Change{}}
}

// answer records an operation that took effect now. It began before and ends
// after, so that it may overlap with others.
func (c *cluster) answer(o history.Op, early, late time.Duration) {
	c.now += time.Millisecond
	o.Begun, o.Ended = max(0, c.now-early), c.now+late
	o.Client = fmt.Sprintf("c%d", len(c.ops)%3)
	c.ops = append(c.ops, o)
}

func (c *cluster) write(key string, outcome history.Outcome, early, late time.Duration) {
	before, kind := c.keys[key], history.Update
	if before.Revision == 0 {
		kind = history.Create
	}
	c.written++
	o := history.Op{Kind: kind, Key: key, Value: fmt.Sprint("v", c.written), Base: before.Revision, Outcome: outcome}
	if outcome != history.Refused {
		c.revision++
		ch := history.Change{Revision: c.revision, Key: key, Value: o.Value}
		c.keys[key] = ch
		c.changes = append(c.changes, ch)
	}
	if outcome == history.OK {
		o.Revision = c.revision
	}
	c.answer(o, early, late)
}

func (c *cluster) read(key string, kind history.Kind, early, late time.Duration) {
	ch := c.keys[key]
	c.answer(history.Op{Kind: kind, Key: key, Value: ch.Value, Revision: ch.Revision, Outcome: history.OK}, early, late)
}

func (c *cluster) list(early, late time.Duration) {
	var all []history.Change
	for _, ch := range c.keys {
		all = append(all, ch)
	}
	slices.SortFunc(all, func(a, b history.Change) int { return strings.Compare(a.Key, b.Key) })
	c.answer(history.Op{Kind: history.List, Value: history.Fingerprint(all), Revision: c.revision, Outcome: history.OK}, early, late)
}

func (c *cluster) members() []history.Member {
	var out []history.Member
	for _, name := range []string{"s1", "s2", "s3"} {
		out = append(out, history.Member{Name: name, Revision: c.revision, Hash: 42, Changes: slices.Clone(c.changes)})
	}
	return out
}

// What a correct cluster does is never called wrong.
func TestCheckAcceptsWhatIsRight(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := newCluster()
		span := rapid.Int64Range(0, int64(10*time.Millisecond))
		for range rapid.IntRange(0, 60).Draw(t, "operations") {
			key := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "key")
			early, late := time.Duration(span.Draw(t, "early")), time.Duration(span.Draw(t, "late"))
			switch rapid.IntRange(0, 5).Draw(t, "kind") {
			case 0, 1:
				c.write(key, history.OK, early, late)
			case 2:
				c.write(key, rapid.SampledFrom([]history.Outcome{history.Refused, history.Unknown}).Draw(t, "outcome"), early, late)
			case 3:
				c.read(key, history.Get, early, late)
			case 4:
				c.read(key, history.Stale, early, late)
			default:
				c.list(early, late)
			}
		}
		if findings := history.Check(c.ops, c.members()); len(findings) > 0 {
			t.Fatalf("found %q in a correct history:\n%v", findings, c.ops)
		}
	})
}

// sample is a history in which each operation ends before the next begins.
func sample() *cluster {
	c := newCluster()
	for range 3 {
		c.write("a", history.OK, 0, 0)
		c.write("b", history.OK, 0, 0)
		c.read("a", history.Get, 0, 0)
		c.list(0, 0)
		c.write("a", history.Refused, 0, 0)
		c.write("b", history.Unknown, 0, 0)
	}
	return c
}

// The operations of sample's last turn.
const (
	writeA = iota + 12
	writeB
	readA
	listAll
	refusedA
	unknownB
)

// Each thing that can be wrong is found, and called by its name.
func TestCheckFindsWhatIsWrong(t *testing.T) {
	for _, test := range []struct {
		name  string
		spoil func(c *cluster, members []history.Member) []history.Member
		want  string
	}{
		{"nobody was asked", func(*cluster, []history.Member) []history.Member { return nil }, "no member was asked"},
		{"a lost write", func(c *cluster, m []history.Member) []history.Member {
			return drop(m, c.ops[writeA].Value)
		}, "acknowledged, but lost"},
		{"a write at another revision", func(c *cluster, m []history.Member) []history.Member {
			c.ops[writeA].Revision--
			return m
		}, "acknowledged, but lost"},
		{"a refused write that is there", func(c *cluster, m []history.Member) []history.Member {
			c.ops[writeB].Outcome = history.Refused
			return m
		}, "refused, but there"},
		{"a write that is there twice", func(c *cluster, m []history.Member) []history.Member {
			return each(m, func(m *history.Member) {
				m.Revision++
				m.Changes = append(m.Changes, history.Change{Revision: m.Revision, Key: "b", Value: c.ops[unknownB].Value})
			})
		}, "applied 2 times"},
		{"a write over another one", func(c *cluster, m []history.Member) []history.Member {
			c.ops[writeA].Base--
			return m
		}, "based on revision"},
		{"a write out of nothing", func(_ *cluster, m []history.Member) []history.Member {
			return each(m, func(m *history.Member) {
				m.Revision++
				m.Changes = append(m.Changes, history.Change{Revision: m.Revision, Key: "c", Value: "ghost"})
			})
		}, "nobody wrote"},
		{"a stale read", func(c *cluster, m []history.Member) []history.Member {
			old := c.ops[writeA-6]
			c.ops[readA].Value, c.ops[readA].Revision = old.Value, old.Revision
			return m
		}, "stale: get"},
		{"a read that finds nothing any more", func(c *cluster, m []history.Member) []history.Member {
			c.ops[readA].Value, c.ops[readA].Revision = "", 0
			return m
		}, "stale: get"},
		{"a read of what was never there", func(c *cluster, m []history.Member) []history.Member {
			c.ops[readA].Value = "ghost"
			return m
		}, "never written"},
		{"a stale read of what was never there", func(c *cluster, m []history.Member) []history.Member {
			c.ops[readA].Kind, c.ops[readA].Value = history.Stale, "ghost"
			return m
		}, "never written"},
		{"a stale list", func(c *cluster, m []history.Member) []history.Member {
			old := c.ops[listAll-6]
			c.ops[listAll].Value, c.ops[listAll].Revision = old.Value, old.Revision
			return m
		}, "stale: list"},
		{"a list with a hole", func(c *cluster, m []history.Member) []history.Member {
			c.ops[listAll].Value = history.Fingerprint(nil)
			return m
		}, "not what there was"},
		{"a write before its time", func(c *cluster, m []history.Member) []history.Member {
			c.ops[writeA].Begun, c.ops[writeA].Ended = time.Hour, 2*time.Hour
			return m
		}, "stale: update"},
		{"another hash", func(_ *cluster, m []history.Member) []history.Member { m[2].Hash++; return m }, "members differ"},
		{"another revision", func(_ *cluster, m []history.Member) []history.Member { m[1].Revision--; return m }, "members differ"},
		{"another past", func(_ *cluster, m []history.Member) []history.Member {
			m[1].Changes[3].Value = "ghost"
			return m
		}, "members differ"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := sample()
			if before := history.Check(c.ops, c.members()); len(before) > 0 {
				t.Fatalf("found %q before anything was spoiled", before)
			}
			findings := history.Check(c.ops, test.spoil(c, c.members()))
			if !strings.Contains(strings.Join(findings, "\n"), test.want) {
				t.Errorf("found %q, expected %q", findings, test.want)
			}
		})
	}
}

func each(members []history.Member, change func(*history.Member)) []history.Member {
	for i := range members {
		change(&members[i])
	}
	return members
}

func drop(members []history.Member, value string) []history.Member {
	return each(members, func(m *history.Member) {
		m.Changes = slices.DeleteFunc(m.Changes, func(ch history.Change) bool { return ch.Value == value })
	})
}

// What may have happened, and did not, is no mistake.
func TestUnknownMayBeAbsent(t *testing.T) {
	c := newCluster()
	c.write("a", history.OK, 0, 0)
	c.write("b", history.Unknown, 0, 0)
	members := c.members()
	value := c.ops[1].Value
	for i := range members {
		members[i].Revision--
	}
	if findings := history.Check(c.ops, drop(members, value)); len(findings) > 0 {
		t.Errorf("found %q", findings)
	}
}

func TestFindingsAreBounded(t *testing.T) {
	c := newCluster()
	for range 3 * history.MaxFindings {
		c.write("a", history.OK, 0, 0)
	}
	if findings := history.Check(c.ops, []history.Member{{Name: "s1"}}); len(findings) != history.MaxFindings {
		t.Errorf("%d findings, at most %d are told", len(findings), history.MaxFindings)
	}
}

func TestCount(t *testing.T) {
	got := history.Count(sample().ops)
	if want := (history.Counts{Commits: 6, Refused: 3, Unknown: 3, Reads: 3, Lists: 3}); got != want {
		t.Errorf("counted %+v, expected %+v", got, want)
	}
}
