// Package shrink makes a list that fails smaller, as long as it goes on failing:
// of forty faults the two that matter, and those no longer than they have to be.
//
// It refuses to know what the items are, and what failing is: that is a function
// which is asked again and again, and has to answer the same for the same list.
package shrink

import (
	"context"
	"slices"
)

// Test tells whether a list still fails. An error ends the search.
type Test[T any] func(ctx context.Context, items []T) (fails bool, err error)

// List finds a part of items, in their order, that fails and of which no single
// item can be left out. It expects that items fail. It is ddmin of Zeller and
// Hildebrandt, "Simplifying and Isolating Failure-Inducing Input" (2002): about
// n log n tests when few items matter, n squared at worst. With an error it
// returns what it has come to.
func List[T any](ctx context.Context, items []T, fails Test[T]) ([]T, error) {
	items = slices.Clone(items)
	for parts := 2; len(items) > 0; {
		smaller, next, err := once(ctx, items, min(parts, len(items)), fails)
		switch {
		case err != nil:
			return items, err
		case next > 0:
			items, parts = smaller, next
		case parts >= len(items):
			return items, nil
		default:
			parts = min(2*parts, len(items))
		}
	}
	return items, nil
}

// once tries each of so many parts alone, and then all but each of them. next is
// in how many parts to cut what still fails, 0 when nothing smaller does.
func once[T any](ctx context.Context, items []T, parts int, fails Test[T]) (smaller []T, next int, err error) {
	for _, alone := range []bool{true, false} {
		if alone && parts == 1 || !alone && parts == 2 {
			continue // it is everything; it is what was tried from the other side
		}
		for i := range parts {
			low, high := i*len(items)/parts, (i+1)*len(items)/parts
			try, next := slices.Clone(items[low:high]), 2
			if !alone {
				try, next = slices.Concat(items[:low], items[high:]), max(parts-1, 2)
			}
			if yes, err := fails(ctx, try); err != nil {
				return nil, 0, err
			} else if yes {
				return try, next, nil
			}
		}
	}
	return nil, 0, nil
}

// Each makes single items smaller: smaller gives what an item may become, the best
// first, and an item is replaced by the first of them with which the list still
// fails, until none does. smaller must come to an end: each of its items is
// smaller than what it was made of. With an error it returns what it has come to.
func Each[T any](ctx context.Context, items []T, smaller func(T) []T, fails Test[T]) ([]T, error) {
	items = slices.Clone(items)
	for i := 0; i < len(items); {
		better, err := replace(ctx, items, i, smaller(items[i]), fails)
		if err != nil {
			return items, err
		}
		if better == nil {
			i++
			continue
		}
		items = better
	}
	return items, nil
}

func replace[T any](ctx context.Context, items []T, i int, by []T, fails Test[T]) ([]T, error) {
	for _, item := range by {
		try := slices.Clone(items)
		try[i] = item
		yes, err := fails(ctx, try)
		if err != nil {
			return nil, err
		}
		if yes {
			return try, nil
		}
	}
	return nil, nil
}
