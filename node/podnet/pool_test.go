package podnet_test

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/balsa-run/balsa/node/podnet"
)

// The pool against a map: no address twice, none lost by a restart, exhausted
// exactly when all are taken.
func TestPoolAgainstMap(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "pool")
		if err != nil {
			r.Fatal(err)
		}
		cidr := netip.PrefixFrom(netip.MustParseAddr("10.244.1.0"), rapid.IntRange(28, 30).Draw(r, "bits"))
		open := func() *podnet.Pool {
			p, err := podnet.OpenPool(cidr, dir)
			if err != nil {
				r.Fatal(err)
			}
			return p
		}
		pool, model := open(), map[string]netip.Addr{}
		r.Repeat(map[string]func(*rapid.T){
			"acquire": func(r *rapid.T) {
				uid := fmt.Sprint("uid-", rapid.IntRange(0, 15).Draw(r, "uid"))
				a, err := pool.Acquire(uid)
				old, had := model[uid]
				switch {
				case had && (err != nil || a != old):
					r.Fatalf("acquire again: %s, %v; had %s", a, err, old)
				case !had && len(model) == pool.Size():
					if !errors.Is(err, podnet.ErrExhausted) {
						r.Fatalf("pool of %d gave %s, %v", pool.Size(), a, err)
					}
				case err != nil:
					r.Fatal(err)
				default:
					for other, taken := range model {
						if taken == a && other != uid {
							r.Fatalf("%s given to %s and %s", a, other, uid)
						}
					}
					model[uid] = a
				}
			},
			"release": func(r *rapid.T) {
				uid := fmt.Sprint("uid-", rapid.IntRange(0, 15).Draw(r, "uid"))
				if err := pool.Release(uid); err != nil {
					r.Fatal(err)
				}
				delete(model, uid)
			},
			"killed": func(*rapid.T) { pool = open() },
			"": func(r *rapid.T) {
				if got := pool.UIDs(); !slices.Equal(got, slices.Sorted(maps.Keys(model))) {
					r.Fatalf("pool has %v, model %v", got, model)
				}
			},
		})
	})
}

func TestPoolUsesEveryAddress(t *testing.T) {
	p, err := podnet.OpenPool(netip.MustParsePrefix("10.244.1.0/24"), "")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[netip.Addr]bool{}
	for i := range p.Size() {
		a, err := p.Acquire(fmt.Sprint(i))
		if err != nil || seen[a] {
			t.Fatalf("%d: %s, %v", i, a, err)
		}
		seen[a] = true
	}
	if p.Size() != 253 || seen[netip.MustParseAddr("10.244.1.0")] || seen[netip.MustParseAddr("10.244.1.1")] || seen[netip.MustParseAddr("10.244.1.255")] {
		t.Errorf("size %d; reserved addresses given", p.Size())
	}
}

func TestPoolSurvivesDamagedFiles(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"10.244.1.2": "", "10.244.1.3": "uid-a\n", "10.244.1.4": "uid-a\n", "10.244.1.5": "two words\n", "last": "nonsense",
		"10.99.0.1": "uid-x\n", "README": "hello", ".10.244.1.9.tmp-1": "uid-half",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p, err := podnet.OpenPool(podCIDR, dir)
	if err != nil {
		t.Fatal(err)
	}
	if got := p.Skipped(); !slices.Equal(got, []string{"10.99.0.1", "README"}) {
		t.Errorf("skipped %v", got)
	}
	if a, err := p.Acquire("uid-b"); err != nil || a != netip.MustParseAddr("10.244.1.6") {
		t.Errorf("acquired %s, %v; want the first address no file names", a, err)
	}
	if a, known := p.Lookup("uid-a"); !known || a != netip.MustParseAddr("10.244.1.3") {
		t.Errorf("uid-a has %s, %v", a, known)
	}
	if err := p.ReleaseNameless(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "10.244.1.2")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nameless file is still there: %v", err)
	}
}

func TestPoolRefusesBadCIDR(t *testing.T) {
	for _, s := range []string{"10.244.1.0/31", "fd00::/64"} {
		if _, err := podnet.OpenPool(netip.MustParsePrefix(s), ""); err == nil {
			t.Errorf("%s accepted", s)
		}
	}
}

func TestDeviceName(t *testing.T) {
	a, b := podnet.DeviceName("uid-a"), podnet.DeviceName("uid-b")
	if len(a) != 15 || a == b {
		t.Errorf("names %q and %q; want two of 15 characters", a, b)
	}
}
