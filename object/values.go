package object

// Values of enumerated strings.
const (
	RestartAlways    = "Always"
	RestartOnFailure = "OnFailure"
	RestartNever     = "Never"

	PullAlways       = "Always"
	PullIfNotPresent = "IfNotPresent"
	PullNever        = "Never"

	ProtocolTCP = "TCP"
	ProtocolUDP = "UDP"

	SchemeHTTP  = "HTTP"
	SchemeHTTPS = "HTTPS"

	MessageFile                  = "File"
	MessageFallbackToLogsOnError = "FallbackToLogsOnError"

	DNSClusterFirst            = "ClusterFirst"
	DNSClusterFirstWithHostNet = "ClusterFirstWithHostNet"
	DNSDefault                 = "Default"
	DNSNone                    = "None"

	GroupsMerge  = "Merge"
	GroupsStrict = "Strict"

	FSGroupAlways         = "Always"
	FSGroupOnRootMismatch = "OnRootMismatch"

	SeccompRuntimeDefault = "RuntimeDefault"
	SeccompUnconfined     = "Unconfined"
	SeccompLocalhost      = "Localhost"

	ProcMountDefault  = "Default"
	ProcMountUnmasked = "Unmasked"

	MediumMemory = "Memory"

	HostPathDirectoryOrCreate = "DirectoryOrCreate"
	HostPathDirectory         = "Directory"
	HostPathFileOrCreate      = "FileOrCreate"
	HostPathFile              = "File"
	HostPathSocket            = "Socket"
	HostPathCharDevice        = "CharDevice"
	HostPathBlockDevice       = "BlockDevice"

	PropagationNone            = "None"
	PropagationHostToContainer = "HostToContainer"
	PropagationBidirectional   = "Bidirectional"

	TaintNoSchedule       = "NoSchedule"
	TaintPreferNoSchedule = "PreferNoSchedule"
	TaintNoExecute        = "NoExecute"

	TolerateEqual  = "Equal"
	TolerateExists = "Exists"

	QOSGuaranteed = "Guaranteed"
	QOSBurstable  = "Burstable"
	QOSBestEffort = "BestEffort"

	ServiceClusterIP    = "ClusterIP"
	ServiceNodePort     = "NodePort"
	ServiceLoadBalancer = "LoadBalancer"
	ServiceExternalName = "ExternalName"
	// ClusterIPNone is the clusterIP of a headless Service.
	ClusterIPNone = "None"

	AffinityNone     = "None"
	AffinityClientIP = "ClientIP"

	TrafficCluster = "Cluster"
	TrafficLocal   = "Local"

	FamilySingleStack = "SingleStack"

	// IPModeVIP addresses are translated by the nodes; IPModeProxy ones are not.
	IPModeVIP   = "VIP"
	IPModeProxy = "Proxy"

	// PolicyIngress and PolicyEgress are the directions of a NetworkPolicy.
	PolicyIngress = "Ingress"
	PolicyEgress  = "Egress"

	EvictIfHealthyBudget = "IfHealthyBudget"
	EvictAlwaysAllow     = "AlwaysAllow"

	// OnFailureRollback and OnFailurePause are what becomes of a rollout that
	// makes no progress.
	OnFailureRollback = "rollback"
	OnFailurePause    = "pause"

	StrategyRollingUpdate = "RollingUpdate"
	StrategyRecreate      = "Recreate"

	DoNotSchedule  = "DoNotSchedule"
	ScheduleAnyway = "ScheduleAnyway"

	SecretOpaque = "Opaque"
	// SecretDockerConfigJSON is the type of Secrets that imagePullSecrets name.
	SecretDockerConfigJSON = "kubernetes.io/dockerconfigjson"
	// DockerConfigJSONKey is the key of such a Secret.
	DockerConfigJSONKey = ".dockerconfigjson"

	AccessReadWriteOnce    = "ReadWriteOnce"
	AccessReadWriteOncePod = "ReadWriteOncePod"

	VolumeFilesystem = "Filesystem"

	ReclaimDelete = "Delete"
	ReclaimRetain = "Retain"

	BindWaitForFirstConsumer = "WaitForFirstConsumer"

	// ProvisionerLocal makes volumes on the nodes' disks.
	ProvisionerLocal = "balsa.run/local"
	// ParameterType is its parameter for the kind of volume.
	ParameterType = "type"
	FSTypeExt4    = "ext4"
	// TypeDirectory makes folders, whose size is not limited.
	TypeDirectory = "directory"
	// AnnotationDefaultClass marks, with "true", the class of claims that name
	// none.
	AnnotationDefaultClass = "storageclass.kubernetes.io/is-default-class"

	EventNormal  = "Normal"
	EventWarning = "Warning"

	AddressIPv4 = "IPv4"
)
