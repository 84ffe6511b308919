//! From VMX, SVM and KVM codes to basic exit reasons.
