package main

import (
	"strings"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/object"
)

func claimColumns() []column {
	return []column{
		{"STATUS", false, of(claimStatus)},
		{"VOLUME", false, of(func(c *balsav1.PersistentVolumeClaim) string { return c.GetSpec().GetVolumeName() })},
		{"CAPACITY", false, of(func(c *balsav1.PersistentVolumeClaim) string {
			return c.GetStatus().GetCapacity()["storage"].GetString_()
		})},
		{"ACCESS MODES", false, of(func(c *balsav1.PersistentVolumeClaim) string { return accessModes(c.GetStatus().GetAccessModes()) })},
		{"STORAGECLASS", false, of(func(c *balsav1.PersistentVolumeClaim) string { return c.GetSpec().GetStorageClassName() })},
		{"VOLUMEMODE", true, of(func(c *balsav1.PersistentVolumeClaim) string { return c.GetSpec().GetVolumeMode() })},
	}
}

func claimStatus(c *balsav1.PersistentVolumeClaim) string {
	if object.IsTerminating(c) {
		return "Terminating"
	}
	return c.GetStatus().GetPhase()
}

func volumeColumns() []column {
	return []column{
		{"CAPACITY", false, of(func(v *balsav1.PersistentVolume) string { return v.GetSpec().GetCapacity()["storage"].GetString_() })},
		{"ACCESS MODES", false, of(func(v *balsav1.PersistentVolume) string { return accessModes(v.GetSpec().GetAccessModes()) })},
		{"RECLAIM POLICY", false, of(func(v *balsav1.PersistentVolume) string { return v.GetSpec().GetPersistentVolumeReclaimPolicy() })},
		{"STATUS", false, of(volumeStatus)},
		{"CLAIM", false, of(func(v *balsav1.PersistentVolume) string { return claimText(v.GetSpec().GetClaimRef()) })},
		{"STORAGECLASS", false, of(func(v *balsav1.PersistentVolume) string { return v.GetSpec().GetStorageClassName() })},
		{"REASON", false, of(func(v *balsav1.PersistentVolume) string { return v.GetStatus().GetReason() })},
		{"NODE", true, of(func(v *balsav1.PersistentVolume) string { return object.VolumeNode(v.GetSpec()) })},
		{"VOLUMEMODE", true, of(func(v *balsav1.PersistentVolume) string { return v.GetSpec().GetVolumeMode() })},
	}
}

func volumeStatus(v *balsav1.PersistentVolume) string {
	if object.IsTerminating(v) {
		return "Terminating"
	}
	return v.GetStatus().GetPhase()
}

func claimText(c *balsav1.ClaimReference) string {
	if c.GetName() == "" {
		return ""
	}
	return c.GetNamespace() + "/" + c.GetName()
}

// accessModes are kubectl's abbreviations.
func accessModes(modes []string) string {
	var short []string
	for _, mode := range modes {
		for _, known := range [][2]string{{"ReadWriteOncePod", "RWOP"}, {"ReadWriteOnce", "RWO"}, {"ReadOnlyMany", "ROX"}, {"ReadWriteMany", "RWX"}} {
			if mode == known[0] {
				mode = known[1]
			}
		}
		short = append(short, mode)
	}
	return strings.Join(short, ",")
}

func storageClassColumns() []column {
	return []column{
		{"PROVISIONER", false, of((*balsav1.StorageClass).GetProvisioner)},
		{"RECLAIMPOLICY", false, of((*balsav1.StorageClass).GetReclaimPolicy)},
		{"VOLUMEBINDINGMODE", false, of((*balsav1.StorageClass).GetVolumeBindingMode)},
		{"ALLOWVOLUMEEXPANSION", false, of(func(*balsav1.StorageClass) string { return "false" })},
	}
}

// rowName is the name of an object in its row; kubectl marks the default class.
func rowName(m object.Message) string {
	name := m.GetMetadata().GetName()
	if class, ok := m.(*balsav1.StorageClass); ok && class.GetMetadata().GetAnnotations()[object.AnnotationDefaultClass] == "true" {
		name += " (default)"
	}
	return name
}
