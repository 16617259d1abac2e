package storetest_test

import (
	"bytes"
	"testing"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/store"
	"github.com/balsa-run/balsa/store/storetest"
)

func TestSuiteOnStore(t *testing.T) {
	storetest.Run(t, func(*testing.T) storetest.Machine {
		return storetest.Real{Store: store.New(store.Options{Spaces: storetest.SuiteSpaces(), Limits: storetest.SuiteLimits()})}
	})
}

func TestSuiteOnModel(t *testing.T) {
	storetest.Run(t, func(*testing.T) storetest.Machine {
		return storetest.NewModel(storetest.SuiteSpaces(), storetest.SuiteLimits())
	})
}

// restless restores itself from a snapshot after every entry.
type restless struct {
	storetest.Real
	t *testing.T
}

func (r restless) Apply(index, term uint64, cmds []*internalv1.Command) []*internalv1.CommandResult {
	results := r.Real.Apply(index, term, cmds)
	snapshot, err := r.SnapshotBytes()
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.Restore(bytes.NewReader(snapshot)); err != nil {
		r.t.Fatal(err)
	}
	return results
}

func TestSuiteOnRestoredStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Machine {
		return restless{t: t, Real: storetest.Real{
			Store: store.New(store.Options{Spaces: storetest.SuiteSpaces(), Limits: storetest.SuiteLimits()}),
		}}
	})
}
