package announce

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestThereAndBack(t *testing.T) {
	for _, a := range []Announcement{
		{},
		{Leader: "10.0.0.1:7443"},
		{Leader: "[fd00::1]:7443", Servers: []string{"10.0.0.1:7443", "[fd00::1]:7443", "host.example:1"}},
	} {
		h := http.Header{}
		a.Put(h)
		if diff := cmp.Diff(a, From(h)); diff != "" {
			t.Errorf("(-put +from):\n%s", diff)
		}
	}
}

// TestNonsense reads what no server of ours would tell.
func TestNonsense(t *testing.T) {
	for _, bad := range []string{
		"host", ":7443", "host:", "host:0", "host:70000", "host:x", "http://host:1", "user@host:1", "a host:1",
		"host/path:1", "host:1:2", strings.Repeat("h", MaxAddressBytes) + ":1",
	} {
		h := http.Header{HeaderLeader: {bad}, HeaderServers: {bad + ",good:1," + bad}}
		if diff := cmp.Diff(Announcement{Servers: []string{"good:1"}}, From(h)); diff != "" {
			t.Errorf("%q (-want +got):\n%s", bad, diff)
		}
	}
	var many []string
	for i := range MaxServers + 5 {
		many = append(many, fmt.Sprintf("s%d:1", i))
	}
	for _, told := range []string{strings.Join(many, ","), strings.Join(append(many[:3], many...), ",")} {
		if got := From(http.Header{HeaderServers: {told}}).Servers; len(got) != MaxServers {
			t.Errorf("%d of %q are believed, want %d", len(got), told, MaxServers)
		}
	}
	if got := From(http.Header{HeaderServers: {strings.Repeat("x:1,", 5000)}}); got.Servers != nil {
		t.Errorf("an endless list is believed: %v", got.Servers)
	}
}
