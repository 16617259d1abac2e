package daemon

import (
	"errors"
	"strings"
	"testing"
)

func TestNoMasqueradeIsChecked(t *testing.T) {
	for _, c := range []struct {
		networks []string
		want     string
	}{
		{[]string{"10.20.0.0/16", "192.0.2.1/32"}, ""},
		{nil, ""},
		{[]string{"fd00::/8"}, `--no-masquerade: "fd00::/8": only IPv4 works`},
		{[]string{"10.20.0.0"}, `--no-masquerade: "10.20.0.0" is not a network`},
		{[]string{"10.20.0.1/16"}, "did you mean 10.20.0.0/16?"},
	} {
		o := AgentOptions{Name: "n1", DataDir: t.TempDir(), NoMasquerade: c.networks}
		err := o.complete()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%v: %v, want %q", c.networks, err, c.want)
		}
	}
	var refused *OptionError
	if err := RunAgent(t.Context(), AgentOptions{Name: "n1", DataDir: t.TempDir(), NoMasquerade: []string{"x"}}); !errors.As(err, &refused) {
		t.Errorf("the agent runs with a bad option: %v", err)
	}
}
