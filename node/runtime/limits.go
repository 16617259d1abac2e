package runtime

// Limits and defaults, the same for every implementation.
const (
	// MinMemoryLimitBytes: below it the program that starts a container is
	// itself killed before it can execute the container's.
	MinMemoryLimitBytes = 8 << 20
	// DefaultPidsLimit bounds the processes and threads of a container.
	DefaultPidsLimit = 4096
	// DefaultNoFileLimit is the RLIMIT_NOFILE that containers get.
	DefaultNoFileLimit = 1 << 16
	// DefaultLogMaxBytes and DefaultLogMaxFiles bound a container's log.
	DefaultLogMaxBytes = 10 << 20
	DefaultLogMaxFiles = 3
	// MinLogMaxBytes and MaxLogMaxFiles bound what may be asked for.
	MinLogMaxBytes = 4 << 10
	MaxLogMaxFiles = 16
	// MaxLogLineBytes: longer lines are split into partial ones.
	MaxLogLineBytes = 16 << 10
	// DefaultCPUPeriodMicros is the period of a CPU quota.
	DefaultCPUPeriodMicros = 100_000
	// MinCPUQuotaMicros is the smallest quota that the kernel accepts.
	MinCPUQuotaMicros = 1_000
	// MinCPUPeriodMicros and MaxCPUPeriodMicros are the kernel's.
	MinCPUPeriodMicros = 1_000
	MaxCPUPeriodMicros = 1_000_000
	// MaxID bounds user and group ids, as in Kubernetes.
	MaxID = 1<<31 - 1
	// MinUserIDs is the smallest IDMapping: images use ids up to 65535.
	MinUserIDs = 1 << 16
	// MaxSysctls bounds PodConfig.Sysctls, maxSysctlBytes a name and a value.
	MaxSysctls     = 64
	maxSysctlBytes = 1 << 10
	// MaxSeccompBytes bounds Security.SeccompProfile.
	MaxSeccompBytes = 1 << 20
	// MaxLayers is the kernel's limit on the lower layers of one overlay.
	MaxLayers = 500
	// MaxContainersPerPod bounds the names in one pod, attempts not counted.
	MaxContainersPerPod = 64
	// MaxPodFileBytes bounds PodConfig.Hosts and PodConfig.ResolvConf.
	MaxPodFileBytes = 1 << 20
	// StartErrorExitCode is what a container that could not be started shows.
	StartErrorExitCode = 128
	// LostExitCode is what a container shows whose exit nobody saw.
	LostExitCode = 137
)
