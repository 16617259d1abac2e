package main

import (
	"net"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// alone puts the test's thread into a network namespace that ends with the test.
func alone(t *testing.T) {
	t.Helper()
	runtime.LockOSThread() // for good: the thread ends with the test's goroutine
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("unshare: %v: the test needs root", err)
	}
	for _, args := range [][]string{{"link", "set", "lo", "up"}, {"addr", "add", "10.244.0.11/32", "dev", "lo"}, {"addr", "add", "10.245.0.10/32", "dev", "lo"},
		{"route", "add", "10.96.0.0/12", "dev", "lo"}} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
}

func listing(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("nft", "list", "table", "ip", "kube-proxy").CombinedOutput()
	if err != nil {
		t.Fatalf("nft list: %v: %s", err, out)
	}
	return canonical(string(out))
}

// canonical undoes what nft shows of two equal sets of rules in two ways: numbers
// of the library's slots are listed as if they were big endian, elements of sets
// in any order.
func canonical(text string) string {
	for slot, shown := range map[string]string{"1": "16777216", "2": "33554432"} {
		text = strings.ReplaceAll(text, " "+shown+" : goto", " "+slot+" : goto")
	}
	text = regexp.MustCompile(`elements = \{[^}]*\}`).ReplaceAllStringFunc(text, func(s string) string {
		words := strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == '\n' || r == '\t' })
		return strings.Join(sorted(words), "|")
	})
	return strings.Join(sorted(strings.Split(text, "\n")), "\n")
}

func sorted(words []string) []string {
	out := make([]string, 0, len(words))
	for _, w := range words {
		if w = strings.Trim(w, " {}"); w != "" && w != "elements =" {
			out = append(out, strings.TrimPrefix(w, "elements = { "))
		}
	}
	for i := range out {
		for j := i; j > 0 && out[j] < out[j-1]; j-- {
			out[j], out[j-1] = out[j-1], out[j]
		}
	}
	return out
}

// Both ways to the kernel make the same rules, before and after a change, and real
// connections follow them.
func TestBothWaysMakeTheSameRules(t *testing.T) {
	const services, endpoints = 4, 3
	listings := map[string][2]string{}
	for _, by := range []string{"nft", "netlink"} {
		alone(t)
		all := makeServices(services, endpoints)
		if err := nft(base); err != nil {
			t.Fatal(err)
		}
		k, done, err := open(by)
		if err != nil {
			t.Fatal(err)
		}
		if err := k.full(all); err != nil {
			t.Fatalf("%s: %v", by, err)
		}
		if err := verify(all); err != nil {
			t.Errorf("%s: %v", by, err)
		}
		before := listing(t)
		gone := all[0].endpoints[0]
		all[0].replaceFirst(0)
		if err := k.change(all[0], gone); err != nil {
			t.Fatalf("%s: %v", by, err)
		}
		if err := verify(all); err == nil {
			t.Errorf("%s: the empty chain of the endpoint that went does not count", by)
		}
		if err := nft("delete chain ip kube-proxy " + gone.chain + "\n"); err != nil {
			t.Errorf("%s: %v", by, err)
		}
		if err := verify(all); err != nil {
			t.Errorf("%s: %v", by, err)
		}
		listings[by] = [2]string{before, listing(t)}
		// Of the three endpoints two are here: the second, and the new one.
		for _, ip := range []string{"10.244.0.11", "10.245.0.10"} {
			reaches(t, by, all[0].address.String()+":80", ip+":8080")
		}
		done()
	}
	if listings["nft"] != listings["netlink"] {
		t.Errorf("by nft:\n%s\nby netlink:\n%s", listings["nft"], listings["netlink"])
	}
}

// reaches connects to the service until the endpoint was chosen.
func reaches(t *testing.T, by, service, endpoint string) {
	t.Helper()
	listener, err := net.Listen("tcp4", endpoint)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	dialer := net.Dialer{Timeout: 200 * time.Millisecond}
	for range 60 {
		conn, err := dialer.Dial("tcp4", service)
		if err == nil {
			_ = conn.Close()
			return
		}
	}
	t.Errorf("%s: no connection to %s of 60 reached %s", by, service, endpoint)
}

func TestUnknownWayIsRefused(t *testing.T) {
	if _, _, err := open("iptables"); err == nil {
		t.Error("an unknown way was taken")
	}
}
