// Package hostcap names the capabilities of Linux: a table, no system calls.
package hostcap

import (
	"fmt"
	"slices"
	"strings"
)

// names in the order of their bits (linux/capability.h).
const names = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE " +
	"NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT " +
	"SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE " +
	"AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ " +
	"PERFMON BPF CHECKPOINT_RESTORE"

// defaults are the fourteen that containers usually get.
const defaults = "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE"

// All stands for every capability in Resolve.
const All = "ALL"

// Names lists every capability as "CAP_..."; the index is the bit.
func Names() []string { return prefixed(names) }

// Default lists the capabilities of a container that asks for nothing.
func Default() []string { return prefixed(defaults) }

func prefixed(list string) []string {
	fields := strings.Fields(list)
	for i := range fields {
		fields[i] = "CAP_" + fields[i]
	}
	return fields
}

// Resolve takes drops from the default set, then adds; names may lack "CAP_".
// The result is in the order of Names.
func Resolve(add, drop []string) ([]string, error) {
	set := map[string]bool{}
	for _, name := range Default() {
		set[name] = true
	}
	for _, change := range []struct {
		names []string
		value bool
	}{{drop, false}, {add, true}} {
		for _, name := range change.names {
			if err := apply(set, name, change.value); err != nil {
				return nil, err
			}
		}
	}
	return slices.DeleteFunc(Names(), func(name string) bool { return !set[name] }), nil
}

func apply(set map[string]bool, name string, value bool) error {
	if strings.EqualFold(name, All) {
		for _, each := range Names() {
			set[each] = value
		}
		return nil
	}
	full := "CAP_" + strings.TrimPrefix(strings.ToUpper(name), "CAP_")
	if !slices.Contains(Names(), full) {
		return fmt.Errorf("capability %q is unknown: use a name such as NET_ADMIN, or ALL", name)
	}
	set[full] = value
	return nil
}
