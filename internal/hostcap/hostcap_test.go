package hostcap

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestBitsAreTheKernels(t *testing.T) {
	names := Names()
	for bit, want := range map[int]string{
		unix.CAP_CHOWN: "CAP_CHOWN", unix.CAP_NET_ADMIN: "CAP_NET_ADMIN", unix.CAP_SYS_ADMIN: "CAP_SYS_ADMIN", unix.CAP_SETFCAP: "CAP_SETFCAP",
		unix.CAP_SYSLOG: "CAP_SYSLOG", unix.CAP_BPF: "CAP_BPF", unix.CAP_LAST_CAP: "CAP_CHECKPOINT_RESTORE",
	} {
		if names[bit] != want {
			t.Errorf("bit %d is %s, want %s", bit, names[bit], want)
		}
	}
	if len(names) != unix.CAP_LAST_CAP+1 || len(Default()) != 14 {
		t.Errorf("%d names and %d defaults", len(names), len(Default()))
	}
}

func TestResolve(t *testing.T) {
	for _, c := range []struct {
		add, drop []string
		want      int
	}{{nil, nil, 14}, {nil, []string{"ALL"}, 0}, {[]string{"net_admin"}, []string{"all"}, 1}, {[]string{"ALL"}, []string{"KILL"}, len(Names())}, {[]string{"CAP_KILL"}, []string{"CAP_KILL"}, 14}} {
		got, err := Resolve(c.add, c.drop)
		if err != nil || len(got) != c.want {
			t.Errorf("add %v, drop %v: %v, %v, want %d", c.add, c.drop, got, err, c.want)
		}
	}
	if got, err := Resolve([]string{"NET_ADMIN"}, []string{"ALL"}); err != nil || !slices.Equal(got, []string{"CAP_NET_ADMIN"}) {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := Resolve([]string{"EVERYTHING"}, nil); err == nil {
		t.Error("an unknown capability was taken")
	}
}
