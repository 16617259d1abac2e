package memlog_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/balsa-run/balsa/cluster/logtest"
	"github.com/balsa-run/balsa/cluster/memlog"
)

func TestBehavesLikeADisk(t *testing.T) {
	logtest.Suite(t, func(t *testing.T) (logtest.Disk, func() logtest.Disk) {
		disk := memlog.New()
		parts := func() logtest.Disk {
			return logtest.Disk{Log: disk.Log(), Stable: disk.Stable(), Snapshots: disk.Snapshots()}
		}
		return parts(), func() logtest.Disk { disk = disk.Crash(); return parts() }
	})
}

func TestAHangingWriteIsLostInACrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := memlog.New()
		disk.Hang()
		done := make(chan error, 1)
		go func() { done <- disk.Log().StoreLog(&raft.Log{Index: 1}) }()
		time.Sleep(time.Hour)
		select {
		case err := <-done:
			t.Fatalf("the write came back: %v", err)
		default:
		}
		after := disk.Crash()
		if err := <-done; !errors.Is(err, memlog.ErrCrashed) {
			t.Errorf("the write ended with %v", err)
		}
		if last, _ := after.Log().LastIndex(); last != 0 {
			t.Errorf("the lost write is on the disk at %d", last)
		}
	})
}

func TestAFailedSyncMayHaveWritten(t *testing.T) {
	disk := memlog.New()
	broken := errors.New("i/o error")
	disk.SetFault(func(int, string) (error, bool) { return broken, true })
	if err := disk.Log().StoreLog(&raft.Log{Index: 1}); !errors.Is(err, broken) {
		t.Fatalf("error %v", err)
	}
	if last, _ := disk.Crash().Log().LastIndex(); last != 1 {
		t.Errorf("last index %d: a torn write reaches the disk", last)
	}
}
