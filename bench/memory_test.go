package bench

import (
	"math"
	"os"
	"testing"
)

const smaps = `00400000-01400000 r-xp 00000000 08:01 123    /data/agent/bin/balsa
Size:              16384 kB
Rss:               10000 kB
Pss:                5000 kB
Pss_Dirty:             0 kB
c000000000-c000400000 rw-p 00000000 00:00 0
Rss:                3000 kB
Pss:                3000 kB
7f0000000000-7f0001000000 r--s 00000000 08:01 77     /data/server/raft/log db
Rss:                 500 kB
Pss:                 500 kB
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0      [stack]
Rss:                  24 kB
Pss:                  24 kB
VmFlags: rd wr mr mw me gd ac
`

func TestParseSmaps(t *testing.T) {
	got := parseSmaps(smaps, "/data/agent/bin/balsa")
	kib := func(n float64) float64 { return n * 1024 / 1e6 }
	for name, pair := range map[string][2]float64{
		"rss": {got.rss, kib(13524)}, "pss": {got.pss, kib(8524)}, "program": {got.program, kib(10000)},
		"files": {got.files, kib(500)}, "own": {got.own, kib(3024)},
	} {
		if math.Abs(pair[0]-pair[1]) > 1e-9 {
			t.Errorf("%s is %v MB, want %v MB", name, pair[0], pair[1])
		}
	}
}

func TestMemoryOfThisProcess(t *testing.T) {
	got, err := memoryOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if got.program <= 0 || got.own <= 0 || got.pss > got.rss+1e-9 || math.Abs(got.program+got.files+got.own-got.rss) > 1e-6 {
		t.Errorf("the parts of %+v are not its whole", got)
	}
	if _, err := memoryOf(math.MaxInt32); err == nil {
		t.Error("a process that does not exist has memory")
	}
}
