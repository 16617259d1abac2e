package shrink_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/balsa-run/balsa/chaos/shrink"
)

// has tells whether a list has all items of needed, and counts how often it is asked.
func has(needed []int, asked *int) shrink.Test[int] {
	return func(_ context.Context, items []int) (bool, error) {
		*asked++
		for _, n := range needed {
			if !slices.Contains(items, n) {
				return false, nil
			}
		}
		return true, nil
	}
}

// Whatever a failure needs is what is left of it, and nothing else.
func TestListFindsExactlyWhatMatters(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(1, 60).Draw(t, "size")
		items := make([]int, size)
		for i := range items {
			items[i] = i
		}
		needed := rapid.SliceOfNDistinct(rapid.IntRange(0, size-1), 0, min(size, 6), rapid.ID[int]).Draw(t, "needed")
		slices.Sort(needed)
		asked := 0
		got, err := shrink.List(context.Background(), items, has(needed, &asked))
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != len(needed) || !slices.Equal(got, needed) {
			t.Fatalf("left %v of %d items, needed %v", got, size, needed)
		}
		if bound := 2*size*size + 10; asked > bound {
			t.Fatalf("asked %d times for %d items", asked, size)
		}
	})
}

// A failure that is not a set of items: at least so many of them. No single one
// can be left out of what is found.
func TestListIsMinimalWhereOrderAndNumberMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		items := rapid.SliceOfN(rapid.IntRange(0, 9), 1, 40).Draw(t, "items")
		sum := 0
		for _, n := range items {
			sum += n
		}
		least := rapid.IntRange(0, sum).Draw(t, "least")
		fails := func(_ context.Context, items []int) (bool, error) {
			got := 0
			for _, n := range items {
				got += n
			}
			return got >= least, nil
		}
		got, err := shrink.List(context.Background(), items, fails)
		if err != nil {
			t.Fatal(err)
		}
		if yes, _ := fails(t.Context(), got); !yes {
			t.Fatalf("%v does not fail", got)
		}
		for i := range got {
			if yes, _ := fails(t.Context(), slices.Concat(got[:i], got[i+1:])); yes {
				t.Fatalf("%v fails without its item %d", got, i)
			}
		}
	})
}

func TestListLogarithmic(t *testing.T) {
	items := make([]int, 1024)
	for i := range items {
		items[i] = i
	}
	asked := 0
	got, err := shrink.List(t.Context(), items, has([]int{700}, &asked))
	if diff := cmp.Diff([]int{700}, got); diff != "" || err != nil || asked > 40 {
		t.Errorf("%v after %d tests, %v", got, asked, err)
	}
}

func TestEachHalves(t *testing.T) {
	halves := func(n int) []int {
		if n <= 1 {
			return nil
		}
		return []int{n / 2}
	}
	fails := func(_ context.Context, items []int) (bool, error) { return items[0] >= 13 && items[1] >= 3, nil }
	got, err := shrink.Each(t.Context(), []int{100, 100, 64}, halves, fails)
	if diff := cmp.Diff([]int{25, 3, 1}, got); diff != "" || err != nil {
		t.Errorf("%s %v", diff, err)
	}
}

func TestAnErrorEndsTheSearchWithWhatThereIs(t *testing.T) {
	tired := errors.New("no more time")
	left := 4
	fails := func(_ context.Context, items []int) (bool, error) {
		if left--; left < 0 {
			return false, tired
		}
		return slices.Contains(items, 6), nil
	}
	got, err := shrink.List(t.Context(), []int{0, 1, 2, 3, 4, 5, 6, 7}, fails)
	if !errors.Is(err, tired) || !slices.Contains(got, 6) || len(got) == 8 {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := shrink.Each(t.Context(), []int{6, 9}, func(n int) []int { return []int{n - 1} }, fails); !errors.Is(err, tired) || len(got) != 2 {
		t.Errorf("%v, %v", got, err)
	}
}

func TestNothingToShrink(t *testing.T) {
	asked := 0
	if got, err := shrink.List(t.Context(), []int{}, has(nil, &asked)); len(got) != 0 || err != nil {
		t.Errorf("%v, %v", got, err)
	}
}
